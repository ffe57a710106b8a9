"""Where a reply begins and ends in a rendered text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_itune.dataset.tokens.tokenizer import PROBE, ChatTokenizer
from mlx_itune.kit.errors import DataError


def reply_after_header(upto: str, opening: str, probe: str, tokenizer: ChatTokenizer) -> str:
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


def opening_of(prompt: str, before: str, tokenizer: ChatTokenizer) -> str:
    """What the generation prompt adds to the turns `before`, or its last control token and on."""
    added = prompt[len(before) :] if prompt.startswith(before) else ""
    if not added and (controls := tokenizer.find_controls(prompt)):
        added = prompt[controls[-1][0] :]
    return added


def learned_part(
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


def check_calls(
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
