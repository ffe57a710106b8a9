"""One row as a model would be trained on it, in pieces that can be shown, with the reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.prepare import PrepareReport, TooLong, prepare
from mlx_itune.dataset.rendering.render import Learn, TokenizedExample, render
from mlx_itune.dataset.tokens.token_text import text_runs, token_texts
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.wording import count


@dataclass(frozen=True)
class Piece:
    """Some text of an example, made of the tokens `ids` from index `start`; one weight for all.

    Several ids only where tokens divide a character, whose bytes alone say nothing.
    """

    start: int
    ids: tuple[int, ...]
    text: str
    weight: float
    control: bool


@dataclass(frozen=True)
class ShownExample:
    """One example of a row: number `example` of `examples`, and why it is as it is (`notes`)."""

    row: str
    example: int
    examples: int
    notes: tuple[str, ...]
    tokens: TokenizedExample

    @property
    def title(self) -> str:
        """The row, and which of its examples this is."""
        return (
            f"{self.row}, example {self.example} of {self.examples}"
            if self.examples > 1
            else self.row
        )

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return int((self.tokens.weights > 0).sum())


def shown_examples(
    row: Conversation,
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    learn: Learn = "all",
    too_long: TooLong = "split",
) -> tuple[ShownExample, ...]:
    """The examples of one row, in order. Raises DataError, naming the row, if there are none."""
    try:
        prepared = prepare(
            [row], tokenizer, max_length_tokens=max_length, learn=learn, too_long=too_long
        )
    except DataError as error:
        where = None if row.origin in error.message else row.origin
        raise DataError(error.message, where=error.where or where, hint=error.hint) from error
    uncut = len(render(row, tokenizer, learn))
    notes = tuple(_notes(prepared.report, uncut, max_length))
    total = len(prepared.examples)
    return tuple(
        ShownExample(row.origin, number, total, notes, example)
        for number, example in enumerate(prepared.examples, 1)
    )


def pieces(example: TokenizedExample, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """The whole example in readable pieces, in order."""
    ids, weights = example.input_ids.tolist(), example.weights.tolist()
    for run in text_runs(tokenizer, ids):
        own = tuple(ids[run.start : run.end])
        if len(set(weights[run.start : run.end])) == 1:
            control = len(own) == 1 and own[0] in tokenizer.control_ids
            yield Piece(run.start, own, run.text, weights[run.start], control)
            continue
        for offset, text in enumerate(token_texts(tokenizer, own)):
            at = run.start + offset
            yield Piece(at, (ids[at],), text, weights[at], ids[at] in tokenizer.control_ids)


def single_tokens(example: TokenizedExample, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """The whole example token by token; parts of characters show their bytes."""
    ids, weights = example.input_ids.tolist(), example.weights.tolist()
    for at, text in enumerate(token_texts(tokenizer, ids)):
        yield Piece(at, (ids[at],), text, weights[at], ids[at] in tokenizer.control_ids)


def _notes(report: PrepareReport, uncut: int, limit: int) -> Iterator[str]:
    if uncut > 1:
        yield (
            "the template writes earlier turns differently once later ones follow, or their tokens "
            "merge: such a turn is learned alone, in the context that inference builds"
        )
    if report.split:
        yield f"cut between exchanges: the row is longer than {limit:,} tokens"
    if report.turns_truncated:
        turns = count(report.turns_truncated, "assistant turn")
        yield f"{turns} cut short: longer than {limit:,} tokens"
    if report.turns_dropped:
        turns = count(report.turns_dropped, "assistant turn")
        yield f"{turns} left out: no room within {limit:,} tokens"
    if report.control_text:
        yield "the text itself spells out a control token of the model"
