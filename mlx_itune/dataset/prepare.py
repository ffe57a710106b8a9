"""Conversations -> examples that fit, and an account of every assistant turn that did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.render import (
    Learn,
    TokenizedExample,
    render,
    render_many,
    turn_weights,
)
from mlx_itune.dataset.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

TooLong = Literal["split", "truncate", "drop", "error"]


@dataclass(frozen=True)
class PrepareReport:
    """What came in and what came out.

    turns = turns_whole + turns_truncated + turns_dropped, always. The tuples list the origins of
    rows that were split, truncated, dropped (wholly or in part), had nothing to learn, or spell out
    a special token in their text, which the model then reads as that token.
    """

    rows: int
    examples: int
    tokens: int
    supervised_tokens: int
    turns: int
    turns_whole: int
    turns_truncated: int
    turns_dropped: int
    split: tuple[str, ...]
    truncated: tuple[str, ...]
    dropped: tuple[str, ...]
    nothing_to_learn: tuple[str, ...]
    control_text: tuple[str, ...]


@dataclass(frozen=True)
class Preparation:
    """Examples in the order of their rows, and the account of them."""

    examples: tuple[TokenizedExample, ...]
    report: PrepareReport


@dataclass
class _Row:
    """What became of one conversation."""

    origin: str
    turns: int
    control_text: bool = False
    examples: list[TokenizedExample] = field(default_factory=list)
    whole: int = 0
    truncated: int = 0
    dropped: int = 0
    split: bool = False


def prepare(
    conversations: Sequence[Conversation],
    tokenizer: ChatTokenizer,
    *,
    max_length_tokens: int = 2048,
    learn: Learn = "all",
    too_long: TooLong = "split",
) -> Preparation:
    """Render every conversation and bring what is too long within `max_length_tokens`.

    `split` cuts a conversation between exchanges, repeating its system turn, and truncates only a
    single exchange that is still too long; `truncate` keeps the start of the tokens; `drop` leaves
    the row out. Raises DataError for `error` and a long row, or when nothing is left to learn.
    """
    outcomes: list[_Row] = []
    refused: list[str] = []
    rendered = render_many(conversations, tokenizer, learn)
    for conversation, parts in zip(conversations, rendered, strict=True):
        row = _Row(conversation.origin, turns=sum(len(part.spans) for part in parts))
        row.control_text = any(tokenizer.find_controls(t.content) for t in conversation.turns)
        outcomes.append(row)
        longest = max((len(part.input_ids) for part in parts), default=0)
        if longest <= max_length_tokens:
            row.examples, row.whole = list(parts), row.turns
        elif too_long == "error":
            refused.append(f"{row.origin} ({longest} tokens)")
        else:
            _shorten(row, conversation, parts, tokenizer, max_length_tokens, learn, too_long)
    if refused:
        raise DataError(
            f"{len(refused)} rows are longer than {max_length_tokens} tokens: "
            + ", ".join(refused[:3]),
            hint="raise --max-length or choose --too-long split, truncate or drop",
        )
    report = _report(outcomes)
    if not report.examples:
        raise DataError(_nothing_left(report, max_length_tokens))
    return Preparation(tuple(e for row in outcomes for e in row.examples), report)


def _shorten(
    row: _Row,
    conversation: Conversation,
    parts: Sequence[TokenizedExample],
    tokenizer: ChatTokenizer,
    limit: int,
    learn: Learn,
    too_long: TooLong,
) -> None:
    if too_long == "drop":
        row.dropped = row.turns
        return
    pieces = [tuple(parts)]
    exchanges = sum(turn.role == "user" for turn in conversation.turns)
    if too_long == "split" and exchanges > 1:
        pieces = list(_pieces(conversation, tokenizer, limit, learn))
        row.split = len(pieces) > 1
    for part in (part for piece in pieces for part in piece):
        _truncate(part, limit, row)


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


def _truncate(part: TokenizedExample, limit: int, row: _Row) -> None:
    spans = [(start, min(end, limit)) for start, end in part.spans if start < limit]
    cut = sum(end > limit for start, end in part.spans if start < limit)
    row.whole += len(spans) - cut
    row.truncated += cut
    row.dropped += len(part.spans) - len(spans)
    if spans:
        # What follows the last learned token is context for nothing.
        end = spans[-1][1]
        row.examples.append(
            replace(
                part,
                input_ids=part.input_ids[:end],
                weights=part.weights[:end],
                spans=tuple(spans),
            )
        )


def _report(rows: list[_Row]) -> PrepareReport:
    examples = [example for row in rows for example in row.examples]
    return PrepareReport(
        rows=len(rows),
        examples=len(examples),
        tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(int(np.count_nonzero(e.weights)) for e in examples),
        turns=sum(row.turns for row in rows),
        turns_whole=sum(row.whole for row in rows),
        turns_truncated=sum(row.truncated for row in rows),
        turns_dropped=sum(row.dropped for row in rows),
        split=tuple(row.origin for row in rows if row.split),
        truncated=tuple(row.origin for row in rows if row.truncated),
        dropped=tuple(row.origin for row in rows if row.dropped),
        nothing_to_learn=tuple(row.origin for row in rows if not row.turns),
        control_text=tuple(row.origin for row in rows if row.control_text),
    )


def _nothing_left(report: PrepareReport, limit: int) -> str:
    if not report.rows:
        return "no rows, so there is nothing to learn"
    reasons = []
    if report.dropped:
        reasons.append(f"{len(report.dropped)} rows do not fit in {limit} tokens")
    if report.nothing_to_learn:
        reasons.append(f"{len(report.nothing_to_learn)} rows have no turn to learn")
    return "nothing is left to learn: " + ", ".join(reasons)
