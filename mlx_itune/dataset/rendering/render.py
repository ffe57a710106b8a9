"""Conversation -> tokens and, for each of them, how much it is learned.

The text is rendered and tokenized once. A turn is learned from where the generation prompt ends to
its end-of-turn token, in exactly the context that inference would build: the tokens before it equal
`ChatTokenizer.prompt_ids`. What an assistant thought is learned with its words: as the template
shows it, or after the prompt that opens a thought, closed as the template closes one. Where one
shared text cannot give that (templates that rewrite earlier turns, tokens that straddle the
border), the turn gets an example of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.conversation import Conversation, is_text
from mlx_itune.dataset.tokens.control_text import Message
from mlx_itune.dataset.tokens.dialect import PROBE
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding

Learn = Literal["all", "last", "marked"]

# The tokenizer's own records take 100 bytes a token while they are tokenized together.
_ROWS_PER_CALL = 64
# A thought that is no longer may stand in any text by chance.
_SHORT_CHARS = 32


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """input_ids (T,) int32, weights (T,) float32: how much each token is learned as a target.
    `spans` are the token ranges [start, end) of the learned turns."""

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    origin: str
    tags: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Span:
    """A learned turn in a text: characters [start, end). `closed`: with an end token of its own."""

    start: int
    end: int
    weight: float
    closed: bool


# A text to tokenize, and the turns to learn in it.
_Draft = tuple[str, list[_Span]]


def render(
    conversation: Conversation, tokenizer: ChatTokenizer, learn: Learn = "all"
) -> tuple[TokenizedExample, ...]:
    """The examples of one conversation; every learned turn is in exactly one of them. `learn`: all
    assistant turns, the last, or those whose `weight` says so; weights count in each. Raises
    DataError when the chat template refuses the turns."""
    (found,) = render_many([conversation], tokenizer, learn)
    if isinstance(found, DataError):
        raise found
    return found


def render_many(
    conversations: Iterable[Conversation], tokenizer: ChatTokenizer, learn: Learn = "all"
) -> Iterator[tuple[TokenizedExample, ...] | DataError]:
    """`render` of each conversation, or why it is refused; tokenized in batches."""
    rows = iter(conversations)
    while chunk := list(islice(rows, _ROWS_PER_CALL)):
        try:
            yield from _render_chunk(chunk, tokenizer, learn)
        except DataError:
            for row in chunk:
                try:
                    yield from _render_chunk([row], tokenizer, learn)
                except DataError as error:
                    yield DataError(error.message, where=row.origin, hint=error.hint)


def _render_chunk(
    chunk: Sequence[Conversation], tokenizer: ChatTokenizer, learn: Learn
) -> list[tuple[TokenizedExample, ...]]:
    drafts = [_drafts(row, tokenizer, turn_weights(row, learn)) for row in chunk]
    encoded = iter(tokenizer.encode_many([text for found in drafts for text, _ in found]))
    # Most rows share their prompts' last pieces: each is tokenized once.
    ids_of = cache(tokenizer.encode_ids)
    return [
        tuple(
            example
            for draft in found
            for example in _settle(draft, next(encoded), ids_of, row, tokenizer)
        )
        for row, found in zip(chunk, drafts, strict=True)
    ]


def turn_weights(conversation: Conversation, learn: Learn) -> tuple[float, ...]:
    """How much each turn is learned; 0 for everything but chosen assistant turns."""
    replies = [n for n, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    chosen = set(replies[-1:] if learn == "last" else replies)
    default = 0.0 if learn == "marked" else 1.0
    return tuple(
        (default if turn.weight is None else turn.weight) if n in chosen else 0.0
        for n, turn in enumerate(conversation.turns)
    )


def _drafts(
    conversation: Conversation, tokenizer: ChatTokenizer, weights: Sequence[float]
) -> list[_Draft]:
    if not any(weights):
        return []
    turns, dialect = conversation.turns, tokenizer.dialect
    messages = tokenizer.messages(turns)
    tools = tokenizer.control_text.hide(conversation.tools)
    if tools and not (dialect.shows_tools or dialect.shows_calls):
        hint = "use a model whose template knows tools, or leave such rows out"
        raise DataError("the chat template shows no tools, which this row has", hint=hint)
    last = len(messages) - 1

    def text_of(upto: Sequence[Message], prompt: bool = False) -> str:
        return tokenizer.render_text(upto, tools=tools, add_generation_prompt=prompt)

    if is_text(conversation.tags):
        text = tokenizer.text_start + messages[0]["content"]
        return [(text, [_Span(len(tokenizer.text_start), len(text), weights[0], False)])]
    full = text_of(messages)
    for n, message in enumerate(messages[1:], 2):
        if message["role"] == "system" and message["content"].strip() not in full:
            said = f"the chat template does not show the system turn {n}, within the conversation"
            raise DataError(said, hint="say it in the user turn, or at the beginning")
    shared: list[_Span] = []
    alone: list[_Draft] = []
    for n, weight in enumerate(weights):
        if not weight:
            continue
        before, message, turn = messages[:n], messages[n], turns[n]
        prompt = text_of(before, prompt=True)
        calls, opening = bool(turn.tool_calls), ""
        words, thought = tokenizer.hidden_reply(turn)
        way = dialect.thoughts[calls]
        if thought and way != "none" and dialect.closes(prompt):
            hint = "leave the thought out, or what turns thinking off"
            raise DataError("the prompt of this reply closes the thought before it", hint=hint)
        if thought and way != "shown":
            (message,) = tokenizer.messages([replace(turn, reasoning=None)])
        upto = full if n == last and message is messages[n] else text_of([*before, message])
        if calls or not upto.startswith(prompt):
            opening = _opening_of(prompt, text_of(before), tokenizer)
        opened = dialect.opened(prompt)
        if opened and upto.startswith(header := prompt[: -len(opened)]):
            tail = dialect.after_thought(opened, upto[len(header) :])
        elif upto.startswith(prompt):
            tail = upto[len(prompt) :]
        else:
            probe = text_of([*before, {"role": "assistant", "content": PROBE}])
            tail = _reply_after_header(upto, opening, probe, tokenizer)
        form = ("", "") if opened else dialect.thought_form
        stands = form is not None if way == "built" else thought in tail
        if thought and way == "shown" and (len(thought) < _SHORT_CHARS or thought in words):
            # It may stand there anyway.
            (bare,) = tokenizer.messages([replace(turn, reasoning=None)])
            stands = text_of([*before, bare]) != upto
        if thought and way != "none" and not stands:
            raise DataError("the chat template has no place for the reasoning of this reply")
        if thought and way == "built" and form:
            tail = form[0] + thought + form[1] + tail
        reply, closed = _learned_part(tail, opening, words, thought, calls, tokenizer)
        if calls:
            _check_calls(message, before, text_of)
        text = prompt + reply
        span = _Span(len(prompt), len(text), weight, closed)
        if full.startswith(text) and (closed or n == last):
            shared.append(span)
        else:
            alone.append((text, [span]))
    # Nothing after the last learned token can matter to the loss, so it is not kept.
    return [(full[: shared[-1].end], shared), *alone] if shared else alone


def _reply_after_header(upto: str, opening: str, probe: str, tokenizer: ChatTokenizer) -> str:
    """The reply in `upto`, where what comes before it is not what inference would have. Templates
    that rewrite earlier turns do this: the reply begins where the generation prompt's `opening`
    ends. Others open a reasoning block that finished turns do not show: there it begins with the
    words, and what stands before known words is its header."""
    header = probe.partition(PROBE)[0]
    at = header.rfind(opening) if opening else -1
    # An earlier reply may begin with the words of the opening; then another turn opens behind it.
    if at >= 0 and tokenizer.control_text.first(opening) not in header[at + len(opening) :]:
        header = header[: at + len(opening)]
    if not upto.startswith(header):
        raise DataError("the chat template hides where this reply begins")
    return upto[len(header) :]


def _opening_of(prompt: str, before: str, tokenizer: ChatTokenizer) -> str:
    """What the generation prompt adds to the turns `before`, or its last control token and on."""
    added = prompt[len(before) :] if prompt.startswith(before) else ""
    if not added and (controls := tokenizer.control_text.spans(prompt)):
        added = prompt[controls[-1][0] :]
    return added


def _learned_part(
    tail: str, opening: str, words: str, thought: str, calls: bool, tokenizer: ChatTokenizer
) -> tuple[str, bool]:
    """The reply up to and including its end token, and whether the template gave it one. Contents
    hold no control tokens, so the first end token is the template's. A control token that opens the
    turn of somebody else ends the reply before it."""
    controls = tokenizer.control_text.spans(tail)
    first = tokenizer.control_text.spans(opening)[:1]
    for start, end, token in controls:
        if token in tokenizer.eos_ids:
            return tail[:end], True
        opens = first and token == first[0][2] and start > 0
        if opens and not tail.startswith(opening[first[0][0] :], start):
            return tail[:start].rstrip(), False
    # The words may occur in the thought, too.
    begins = tail.index(thought) + len(thought) if thought and thought in tail else 0
    at = tail.find(words, begins) if words else -1
    # Short words also occur within control tokens.
    while any(start < at + len(words) and at < end for start, end, _ in controls) and at >= 0:
        at = tail.find(words, at + 1)
    words_end = at + len(words) if at >= 0 else 0
    after = [end for start, end, _ in controls if start >= words_end]
    if after and at >= 0 and not calls:
        return tail[: after[0]], True
    return tail[: max(words_end, len(tail.rstrip()))], False


def _check_calls(
    message: Message, before: Sequence[Message], text_of: Callable[[Sequence[Message]], str]
) -> None:
    """A template that does not know tool calls would have silence learned in their place."""
    # Under names that occur nowhere else: a real one may stand in the text by chance.
    calls = [
        {**call, "function": {**call["function"], "name": f"{PROBE}{number}."}}
        for number, call in enumerate(message["tool_calls"])
    ]
    text = text_of([*before, {**message, "tool_calls": calls}])
    for call, renamed in zip(message["tool_calls"], calls, strict=True):
        if renamed["function"]["name"] not in text:
            what = f"the chat template does not write the tool call {call['function']['name']!r}"
            hint = "use a model whose template knows tools, or leave such rows out"
            raise DataError(what, hint=hint)


def _settle(
    draft: _Draft,
    encoding: Encoding,
    ids_of: Callable[[str], list[int]],
    row: Conversation,
    tokenizer: ChatTokenizer,
) -> Iterator[TokenizedExample]:
    """Character spans to token weights; turns whose context would differ come out alone. Special
    tokens cut a text in independent pieces, so a prompt tokenizes as it does within the text if its
    last piece does: with most templates the same short header in every row."""
    text, spans = draft
    ids, ranges = np.array(encoding.ids, dtype=np.int32), encoding.offsets
    controls = np.flatnonzero(np.isin(ids, list(tokenizer.control_ids)))
    shared: list[tuple[_Span, int, int]] = []
    strays: list[_Span] = []
    for span in spans:
        first, end = (bisect_left(ranges, (at, 0)) for at in (span.start, span.end))
        before = controls[: np.searchsorted(controls, first)].tolist()
        anchor = before[-1] if before else 0
        piece = text[ranges[anchor][0] if before else 0 : span.start]
        # A special token may swallow the white space that follows it.
        crosses = first > anchor + bool(before) and ranges[first - 1][1] > span.start
        if not crosses and ids_of(piece) == ids[anchor:first].tolist():
            shared.append((span, first, end))
        else:
            strays.append(span)
    if shared:
        yield _example(ids[: shared[-1][2]], shared, row, tokenizer)
    for span in strays:
        prompt = tokenizer.encode_ids(text[: span.start])
        reply = tokenizer.continuation_ids(text[span.start : span.end])
        tokens = np.array([*prompt, *reply], dtype=np.int32)
        yield _example(tokens, [(span, len(prompt), len(tokens))], row, tokenizer)


def _example(
    ids: NDArray[np.int32],
    learned: Sequence[tuple[_Span, int, int]],
    row: Conversation,
    tokenizer: ChatTokenizer,
) -> TokenizedExample:
    """The tokens, with an end token behind a last turn that has none of its own."""
    if not learned[-1][0].closed:
        ids = np.append(ids, np.int32(tokenizer.closing_id))
    ends = [*(end for _, _, end in learned[:-1]), len(ids)]
    weights = np.zeros(len(ids), dtype=np.float32)
    for (span, first, _), end in zip(learned, ends, strict=True):
        weights[first:end] = span.weight
    spans = tuple((first, end) for (_, first, _), end in zip(learned, ends, strict=True))
    return TokenizedExample(ids, weights, row.origin, row.tags, spans)
