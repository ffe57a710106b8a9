"""Conversations -> examples that fit, and an account of every assistant turn that did not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee
from typing import Literal

import numpy as np

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.render import (
    Learn,
    TokenizedExample,
    render,
    render_many,
    turn_weights,
)
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

TooLong = Literal["split", "truncate", "drop", "error"]


@dataclass
class PrepareReport:
    """What came in and what came out; adds up row by row while rows are prepared.

    turns = turns_whole + turns_truncated + turns_dropped, always. The lists hold the origins of
    rows that were split, truncated, dropped (wholly or in part), had nothing to learn, or spell out
    a control token in their text, which is tokenized as the characters it is made of.
    """

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    turns: int = 0
    turns_whole: int = 0
    turns_truncated: int = 0
    turns_dropped: int = 0
    split: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    nothing_to_learn: list[str] = field(default_factory=list)
    control_text: list[str] = field(default_factory=list)

    def add(self, origin: str, turns: int, kept: _Kept, *, control_text: bool) -> None:
        """Count what became of one conversation with so many turns to learn."""
        spans = sum(len(example.spans) for example in kept.examples)
        self.rows += 1
        self.examples += len(kept.examples)
        self.tokens += sum(len(example.input_ids) for example in kept.examples)
        self.supervised_tokens += sum(int(np.count_nonzero(e.weights)) for e in kept.examples)
        self.turns += turns
        self.turns_whole += spans - kept.truncated
        self.turns_truncated += kept.truncated
        self.turns_dropped += turns - spans
        for origins, marked in (
            (self.split, kept.split),
            (self.truncated, kept.truncated),
            (self.dropped, turns - spans),
            (self.nothing_to_learn, not turns),
            (self.control_text, control_text),
        ):
            if marked:
                origins.append(origin)


@dataclass(frozen=True)
class Preparation:
    """Examples in the order of their rows, and the account of them."""

    examples: Sequence[TokenizedExample]
    report: PrepareReport


@dataclass(frozen=True)
class _Kept:
    """What is learned of one conversation: `truncated` of its turns lost their ends."""

    examples: Sequence[TokenizedExample]
    truncated: int = 0
    split: bool = False


def prepare(
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    *,
    max_length_tokens: int = 2048,
    learn: Learn = "all",
    too_long: TooLong = "split",
) -> Preparation:
    """Render every conversation and bring what is too long within `max_length_tokens`.

    `split` cuts a conversation between exchanges, repeating its system turn, and truncates only a
    single exchange that is still too long; `truncate` keeps the start of the tokens; `drop` leaves
    the row out. Raises DataError for rows that the template refuses (all are counted), for `error`
    and a long row, or when nothing is left to learn.
    """
    report = PrepareReport()
    examples = prepare_each(
        conversations,
        tokenizer,
        report,
        max_length_tokens=max_length_tokens,
        learn=learn,
        too_long=too_long,
    )
    return Preparation(tuple(examples), report)


def prepare_each(
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    report: PrepareReport,
    *,
    max_length_tokens: int,
    learn: Learn,
    too_long: TooLong,
) -> Iterator[TokenizedExample]:
    """The examples of `prepare` one after another, accounted for in `report`.

    Holds a few hundred rows at a time. Raises what `prepare` raises, when the last row is done.
    """
    refused: list[DataError] = []
    long: list[str] = []
    rows, to_render = tee(conversations)
    for row, parts in zip(rows, render_many(to_render, tokenizer, learn), strict=True):
        if isinstance(parts, DataError):
            refused.append(parts)
            parts = ()
        kept = _Kept(parts)
        longest = max((len(part.input_ids) for part in parts), default=0)
        if longest > max_length_tokens and too_long == "error":
            long.append(f"{row.origin} ({longest} tokens)")
        if longest > max_length_tokens:
            kept = _shortened(row, parts, tokenizer, max_length_tokens, learn, too_long)
        control_text = any(map(tokenizer.spells_control, row.turns))
        turns = sum(len(part.spans) for part in parts)
        report.add(row.origin, turns, kept, control_text=control_text)
        yield from kept.examples
    if refused:
        first, others = refused[0], len(refused) - 1
        raise DataError(
            first.message + (f"; so it does {others} more rows" if others else ""),
            where=first.where,
            hint=first.hint or "`mlx-itune data check --model ...` lists them all",
        )
    if long:
        raise DataError(
            f"{len(long)} rows are longer than {max_length_tokens} tokens: " + ", ".join(long[:3]),
            hint="raise --max-length or choose --too-long split, truncate or drop",
        )
    if not report.examples:
        raise DataError(_nothing_left(report, max_length_tokens))


def _nothing_left(report: PrepareReport, limit: int) -> str:
    if not report.rows:
        return "no rows, so there is nothing to learn"
    reasons = []
    if report.dropped:
        reasons.append(f"{len(report.dropped)} rows do not fit in {limit} tokens")
    if report.nothing_to_learn:
        reasons.append(f"{len(report.nothing_to_learn)} rows have no turn to learn")
    return "nothing is left to learn: " + ", ".join(reasons)


def _shortened(
    conversation: Conversation,
    parts: Sequence[TokenizedExample],
    tokenizer: ChatTokenizer,
    limit: int,
    learn: Learn,
    too_long: TooLong,
) -> _Kept:
    if too_long in ("drop", "error"):
        return _Kept(())
    pieces = [tuple(parts)]
    exchanges = sum(turn.role == "user" for turn in conversation.turns)
    if too_long == "split" and exchanges > 1:
        pieces = list(_pieces(conversation, tokenizer, limit, learn))
    whole = [part for piece in pieces for part in piece]
    examples = [cut for part in whole if (cut := _cut(part, limit)).spans]
    truncated = sum(start < limit < end for part in whole for start, end in part.spans)
    return _Kept(examples, truncated, split=len(pieces) > 1)


def _pieces(
    conversation: Conversation, tokenizer: ChatTokenizer, limit: int, learn: Learn
) -> Iterator[tuple[TokenizedExample, ...]]:
    """The conversation cut between exchanges, packed from its end, so that late turns keep as much
    context as fits; the system turn stands before every piece."""
    weights = turn_weights(conversation, learn)
    # Pieces are rendered as marked, so that "last" still means the last turn of the whole.
    turns = tuple(
        replace(turn, weight=weight) if turn.role == "assistant" else turn
        for turn, weight in zip(conversation.turns, weights, strict=True)
    )
    system = turns[:1] if turns[0].role == "system" else ()
    starts = [n for n, turn in enumerate(turns) if turn.role == "user"]

    def piece(first: int, end: int) -> tuple[TokenizedExample, ...]:
        cut = replace(conversation, turns=(*system, *turns[first:end]))
        return render(cut, tokenizer, "marked")

    found: list[tuple[TokenizedExample, ...]] = []
    end = len(turns)
    while starts:
        first = starts.pop()
        best = piece(first, end)
        while starts:
            longer = piece(starts[-1], end)
            if any(len(part.input_ids) > limit for part in longer):
                break
            first, best = starts.pop(), longer
        if best:
            found.append(best)
        end = first
    yield from reversed(found)


def _cut(part: TokenizedExample, limit: int) -> TokenizedExample:
    """Its first `limit` tokens at most; what follows the last learned one is context for nothing"""
    spans = tuple((start, min(end, limit)) for start, end in part.spans if start < limit)
    end = spans[-1][1] if spans else 0
    return replace(part, input_ids=part.input_ids[:end], weights=part.weights[:end], spans=spans)
