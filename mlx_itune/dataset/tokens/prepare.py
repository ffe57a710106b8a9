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


@dataclass(frozen=True)
class PrepareReport:
    """What came in and what came out.

    turns = turns_whole + turns_truncated + turns_dropped, always. The tuples list the origins of
    rows that were split, truncated, dropped (wholly or in part), had nothing to learn, or spell out
    a control token in their text, which is tokenized as the characters it is made of.
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

    examples: Sequence[TokenizedExample]
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


class Account:
    """Adds up a PrepareReport, row by row."""

    def __init__(self) -> None:
        self.examples = self._rows = self._tokens = self._supervised = 0
        self._turns = self._whole = self._truncated = self._dropped = 0
        self._listed: dict[str, list[str]] = {
            name: [] for name in ("split", "truncated", "dropped", "nothing", "control_text")
        }

    def add(self, row: _Row) -> None:
        """Count what became of one conversation."""
        self._rows += 1
        self.examples += len(row.examples)
        self._tokens += sum(len(example.input_ids) for example in row.examples)
        self._supervised += sum(int(np.count_nonzero(e.weights)) for e in row.examples)
        self._turns += row.turns
        self._whole += row.whole
        self._truncated += row.truncated
        self._dropped += row.dropped
        marks = (row.split, row.truncated, row.dropped, not row.turns, row.control_text)
        for listed, marked in zip(self._listed.values(), marks, strict=True):
            if marked:
                listed.append(row.origin)

    def report(self) -> PrepareReport:
        """The account so far."""
        listed = {name: tuple(origins) for name, origins in self._listed.items()}
        return PrepareReport(
            rows=self._rows,
            examples=self.examples,
            tokens=self._tokens,
            supervised_tokens=self._supervised,
            turns=self._turns,
            turns_whole=self._whole,
            turns_truncated=self._truncated,
            turns_dropped=self._dropped,
            split=listed["split"],
            truncated=listed["truncated"],
            dropped=listed["dropped"],
            nothing_to_learn=listed["nothing"],
            control_text=listed["control_text"],
        )

    def nothing_left(self, limit: int) -> str:
        """Why there is no example."""
        if not self._rows:
            return "no rows, so there is nothing to learn"
        reasons = []
        if dropped := self._listed["dropped"]:
            reasons.append(f"{len(dropped)} rows do not fit in {limit} tokens")
        if empty := self._listed["nothing"]:
            reasons.append(f"{len(empty)} rows have no turn to learn")
        return "nothing is left to learn: " + ", ".join(reasons)


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
    account = Account()
    examples = tuple(
        prepare_each(
            conversations,
            tokenizer,
            account,
            max_length_tokens=max_length_tokens,
            learn=learn,
            too_long=too_long,
        )
    )
    return Preparation(examples, account.report())


def prepare_each(
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    account: Account,
    *,
    max_length_tokens: int,
    learn: Learn,
    too_long: TooLong,
) -> Iterator[TokenizedExample]:
    """The examples of `prepare` one after another, accounted for in `account`.

    Holds a few hundred rows at a time. Raises what `prepare` raises, when the last row is done.
    """
    refused: list[DataError] = []
    long: list[str] = []
    rows, to_render = tee(conversations)
    rendered = render_many(
        to_render, tokenizer, learn, refused=lambda _, error: refused.append(error)
    )
    for conversation, parts in zip(rows, rendered, strict=True):
        row = _Row(conversation.origin, turns=sum(len(part.spans) for part in parts))
        row.control_text = any(map(tokenizer.spells_control, conversation.turns))
        longest = max((len(part.input_ids) for part in parts), default=0)
        if longest <= max_length_tokens:
            row.examples, row.whole = list(parts), row.turns
        elif too_long == "error":
            long.append(f"{row.origin} ({longest} tokens)")
        else:
            _shorten(row, conversation, parts, tokenizer, max_length_tokens, learn, too_long)
        account.add(row)
        yield from row.examples
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
    if not account.examples:
        raise DataError(account.nothing_left(max_length_tokens))


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
