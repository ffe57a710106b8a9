"""Conversation -> tokens and, for each of them, how much it is learned.

The text is rendered and tokenized once. A turn is learned from where the generation prompt ends to
its end-of-turn token, in exactly the context that inference would build: the tokens before it equal
`ChatTokenizer.prompt_ids`. Where one shared text cannot give that (templates that rewrite earlier
turns, tokens that straddle the border), the turn gets an example of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.conversation import Conversation, is_text
from mlx_itune.dataset.tokens.tokenizer import PROBE, ChatTokenizer, Encoded
from mlx_itune.kit.errors import DataError

Learn = Literal["all", "last", "marked"]

_ROWS_PER_CALL = 256
_CHARACTERS_PER_CALL = 1_000_000


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """input_ids (T,) int32, weights (T,) float32: how much each token is learned as a target.

    `spans` are the token ranges [start, end) of the learned turns.
    """

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    origin: str
    tags: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Span:
    """A learned turn in a text: characters [start, end)."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class _Draft:
    """A text to tokenize. `close`: an end token must be appended, the template brings none."""

    text: str
    spans: tuple[_Span, ...]
    close: bool


def render(
    conversation: Conversation, tokenizer: ChatTokenizer, learn: Learn = "all"
) -> tuple[TokenizedExample, ...]:
    """The examples of one conversation; every learned turn is in exactly one of them.

    `learn`: all assistant turns, the last one, or those whose `weight` says so; a turn's own
    weight counts in each. Raises DataError when the chat template refuses the turns.
    """
    (found,) = render_many([conversation], tokenizer, learn)
    if isinstance(found, DataError):
        raise found
    return found


def render_many(
    conversations: Iterable[Conversation], tokenizer: ChatTokenizer, learn: Learn = "all"
) -> Iterator[tuple[TokenizedExample, ...] | DataError]:
    """`render` of each conversation, or why it is refused; tokenized in batches."""
    for chunk in _chunks(conversations):
        try:
            # As a list: what is yielded must not be yielded again one by one.
            yield from list(_render_chunk(chunk, tokenizer, learn))
        except DataError:
            yield from (_render_alone(row, tokenizer, learn) for row in chunk)


def _chunks(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Rows to tokenize together: the tokenizer's own records take 100 bytes a token."""
    chunk: list[Conversation] = []
    characters = 0
    for row in conversations:
        chunk.append(row)
        characters += sum(len(turn.content) for turn in row.turns)
        if len(chunk) == _ROWS_PER_CALL or characters > _CHARACTERS_PER_CALL:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _render_alone(
    row: Conversation, tokenizer: ChatTokenizer, learn: Learn
) -> tuple[TokenizedExample, ...] | DataError:
    try:
        return next(_render_chunk([row], tokenizer, learn))
    except DataError as error:
        return DataError(error.message, where=row.origin, hint=error.hint)


def _render_chunk(
    chunk: Sequence[Conversation], tokenizer: ChatTokenizer, learn: Learn
) -> Iterator[tuple[TokenizedExample, ...]]:
    drafts = [_drafts(row, tokenizer, turn_weights(row, learn)) for row in chunk]
    flat = [draft for row_drafts in drafts for draft in row_drafts]
    encoded = tokenizer.encode_many([draft.text for draft in flat])
    borders = [_borders(d, e, tokenizer) for d, e in zip(flat, encoded, strict=True)]
    # Most rows share their prompts' last pieces: each is tokenized once.
    pieces = list({b.piece for found in borders for b in found if b.piece is not None})
    alone = dict(zip(pieces, tokenizer.encode_ids_many(pieces), strict=True))
    settled = zip(flat, encoded, borders, strict=True)
    for row, row_drafts in zip(chunk, drafts, strict=True):
        yield tuple(
            example
            for draft, tokens, found in islice(settled, len(row_drafts))
            for example in _settle(draft, tokens, found, alone, row, tokenizer)
        )


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
    messages = tokenizer.messages(conversation.turns)
    tools = tokenizer.tools(conversation.tools)
    last = len(messages) - 1

    def text_of(upto: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        return tokenizer.render_text(upto, tools=tools, add_generation_prompt=prompt)

    if is_text(conversation.tags):
        text = tokenizer.text_start + messages[0]["content"]
        return [_Draft(text, (_Span(len(tokenizer.text_start), len(text), weights[0]),), True)]
    full = text_of(messages)
    shared: list[_Span] = []
    alone: list[_Draft] = []
    shared_close = False
    for n, weight in enumerate(weights):
        if not weight:
            continue
        before, message = messages[:n], messages[n]
        prompt = text_of(before, prompt=True)
        upto = full if n == last else text_of(messages[: n + 1])
        calls, opening = "tool_calls" in message, ""
        if calls or not upto.startswith(prompt):
            opening = _opening_of(prompt, text_of(before), tokenizer)
        if upto.startswith(prompt):
            tail = upto[len(prompt) :]
        else:
            probe = text_of([*before, {"role": "assistant", "content": PROBE}])
            tail = _reply_after_header(upto, opening, probe, tokenizer)
        reply, closed = _learned_part(tail, opening, message, tokenizer)
        if calls:
            _check_calls(message, before, text_of)
        span = _Span(len(prompt), len(prompt) + len(reply), weight)
        if full.startswith(prompt + reply) and (closed or n == last):
            shared.append(span)
            shared_close = not closed
        else:
            alone.append(_Draft(prompt + reply, (span,), not closed))
    if shared:
        # Nothing after the last learned token can matter to the loss, so it is not kept.
        alone.insert(0, _Draft(full[: shared[-1].end], tuple(shared), shared_close))
    return alone


def _reply_after_header(upto: str, opening: str, probe: str, tokenizer: ChatTokenizer) -> str:
    """The reply in `upto`, where what comes before it is not what inference would have.

    Templates that rewrite earlier turns do this: the reply begins where the generation prompt's
    `opening` ends. Others open a reasoning block that finished turns do not show: there it begins
    with the words, and what stands before known words is its header.
    """
    header = probe.partition(PROBE)[0]
    at = header.rfind(opening) if opening else -1
    # An earlier reply may begin with the words of the opening; then another turn opens behind it.
    if at >= 0 and tokenizer.first_mark(opening) not in header[at + len(opening) :]:
        header = header[: at + len(opening)]
    if not upto.startswith(header):
        raise DataError("the chat template hides where this reply begins")
    return upto[len(header) :]


def _opening_of(prompt: str, before: str, tokenizer: ChatTokenizer) -> str:
    """What the generation prompt adds to the turns `before`, or its last control token and on."""
    added = prompt[len(before) :] if prompt.startswith(before) else ""
    if not added and (controls := tokenizer.find_controls(prompt)):
        added = prompt[controls[-1][0] :]
    return added


def _learned_part(
    tail: str, opening: str, message: Mapping[str, Any], tokenizer: ChatTokenizer
) -> tuple[str, bool]:
    """The reply up to and including its end token, and whether the template gave it one.

    Contents hold no control tokens, so the first end token is the template's. A control token that
    opens the turn of somebody else ends the reply before it.
    """
    controls = tokenizer.find_controls(tail)
    first = tokenizer.find_controls(opening)[:1]
    for start, end, token in controls:
        if token in tokenizer.eos_ids:
            return tail[:end], True
        opens = first and token == first[0][2] and start > 0
        if opens and not tail.startswith(opening[first[0][0] :], start):
            return tail[:start].rstrip(), False
    words: str = message["content"].strip()
    at = tail.find(words) if words else -1
    # Short words also occur within control tokens.
    while any(start < at + len(words) and at < end for start, end, _ in controls) and at >= 0:
        at = tail.find(words, at + 1)
    words_end = at + len(words) if at >= 0 else 0
    after = [end for start, end, _ in controls if start >= words_end]
    if after and at >= 0 and "tool_calls" not in message:
        return tail[: after[0]], True
    return tail[: max(words_end, len(tail.rstrip()))], False


def _check_calls(
    message: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    text_of: Callable[[Sequence[Mapping[str, Any]]], str],
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
            raise DataError(
                f"the chat template does not write the tool call {call['function']['name']!r}",
                hint="use a model whose template knows tools, or leave such rows out",
            )


@dataclass(frozen=True)
class _Border:
    """A span's tokens [first, end), and `piece`, the prompt's text that the tokens [anchor, first)
    stand for: alone it must tokenize the same. None where a token reaches over the border.

    Special tokens cut a text in independent pieces, so only the piece from the last one before the
    span has to be tokenized again: with most templates the same short header in every row.
    """

    first: int
    end: int
    anchor: int
    piece: str | None


def _borders(draft: _Draft, encoded: Encoded, tokenizer: ChatTokenizer) -> list[_Border]:
    controls = np.flatnonzero(tokenizer.is_control[encoded.ids])
    found = []
    for span in draft.spans:
        first, end = np.searchsorted(encoded.starts, (span.start, span.end)).tolist()
        before = controls[: np.searchsorted(controls, first)].tolist()
        anchor = before[-1] if before else 0
        begin = int(encoded.starts[anchor]) if before else 0
        straddled = first > 0 and encoded.ends[first - 1] > span.start
        piece = None if straddled else draft.text[begin : span.start]
        found.append(_Border(first, end, anchor, piece))
    return found


def _settle(
    draft: _Draft,
    encoded: Encoded,
    borders: Sequence[_Border],
    alone: Mapping[str, list[int]],
    row: Conversation,
    tokenizer: ChatTokenizer,
) -> Iterator[TokenizedExample]:
    """Character spans to token weights; turns whose context would differ come out alone."""
    ids = encoded.ids
    ranges: list[tuple[int, int, float]] = []
    strays: list[_Span] = []
    for span, border in zip(draft.spans, borders, strict=True):
        context = ids[border.anchor : border.first].tolist()
        if border.piece is not None and alone[border.piece] == context:
            ranges.append((border.first, border.end, span.weight))
        else:
            strays.append(span)
    if ranges:
        closing = draft.close and draft.spans[-1] not in strays
        yield _example(ids[: ranges[-1][1]], ranges, closing, row, tokenizer)
    for span in strays:
        prompt, reply = draft.text[: span.start], draft.text[span.start : span.end]
        before = tokenizer.encode_ids(prompt)
        tokens = np.array([*before, *tokenizer.continuation_ids(prompt, reply)], dtype=np.int32)
        closing = draft.close and span is draft.spans[-1]
        yield _example(tokens, [(len(before), len(tokens), span.weight)], closing, row, tokenizer)


def _example(
    ids: NDArray[np.int32],
    ranges: list[tuple[int, int, float]],
    close: bool,
    row: Conversation,
    tokenizer: ChatTokenizer,
) -> TokenizedExample:
    if close:
        ids = np.append(ids, np.int32(tokenizer.closing_id))
        first, _, weight = ranges[-1]
        ranges = [*ranges[:-1], (first, len(ids), weight)]
    weights = np.zeros(len(ids), dtype=np.float32)
    for first, end, weight in ranges:
        weights[first:end] = weight
    spans = tuple((first, end) for first, end, _ in ranges)
    return TokenizedExample(ids, weights, row.origin, row.tags, spans)
