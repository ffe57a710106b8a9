"""Rows as a model is trained on them: their tokens, and how much each is learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlx_itune.api.rows import FORM, AboutTokens, PathLike, RowFiles, new_page, refusal
from mlx_itune.dataset.conversation import Fault, SystemMode, system_prompt
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.dataset.rendering.prepare import PrepareReport
from mlx_itune.dataset.rendering.show_rows import (
    ShownExample,
    find_rows,
    first_rows,
    pieces,
    shown_examples,
    tokens_page,
)
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import write_new
from mlx_itune.kit.settings import records


@dataclass(frozen=True)
class ShownToken:
    """A token: its id, what it adds to the text, how much it is learned (0: not)."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True)
class ShownRow:
    """Example number `example` of `examples` that a row gives, with `learned` tokens to learn."""

    row: str
    tokens: tuple[ShownToken, ...]
    learned: int
    example: int
    examples: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A row that is not shown, and why."""

    row: str
    reason: str
    hint: str | None


@dataclass(frozen=True)
class Shown:
    """Rows as a model is trained on them."""

    notes: tuple[str, ...]
    rows: tuple[ShownRow, ...]
    skipped: tuple[Skipped, ...]
    told: Account
    html: Path | None


@dataclass(frozen=True)
class ShowSettings:
    """rows: so many from the first on; row: these instead, as file:line, split:line, a line or an
    id; strict: what the template shows nowhere is an error."""

    rows: int = 3
    row: tuple[str, ...] = ()
    learn: Literal["all", "last", "marked"] = "all"
    max_length: int = 2048
    too_long: Literal["split", "truncate", "drop", "error"] = "split"
    system: str | None = None
    system_mode: SystemMode = "missing"
    strict: bool = False


def show(data: PathLike, model: str, *, html: PathLike | None = None, **how: Any) -> Shown:
    """The tokens that a model would be trained on, with how much each is learned. `html`: a page of
    it, written there. `how`: rows, row, learn, max_length, too_long, system, system_mode, strict,
    template, template_option; format, map, roles, encoding, no_input. Raises DataError where no row
    can be shown; UsageError, ModelError, StorageError."""
    return examples_shown(data, model, html=html, **how)[-1]


def examples_shown(
    data: PathLike,
    model: str,
    *,
    adapter: PathLike | None = None,
    html: PathLike | None = None,
    **how: Any,
) -> tuple[list[ShownExample], ChatTokenizer, Shown]:
    """`show`, with the examples and the tokenizer that its rows are made of before it."""

    page = new_page(html)
    form, asked, about = records(
        {**how, "model": str(model)},
        (ImportPlan, FORM),
        ShowSettings,
        (AboutTokens, "model template template_option"),
    )
    files = RowFiles((data,), form)
    tokenizer = about.tokenizer(Path(adapter) if adapter is not None else None)
    files.how = replace(files.how, system=system_prompt(asked.system, asked.system_mode))
    policy = {name: getattr(asked, name) for name in ("learn", "max_length", "too_long")}
    seen, shown, left_out = PrepareReport(), list[Any](), list[DataError]()
    named = find_rows(files.paths, asked.row, files.read) if asked.row else None
    for row in named or first_rows(files.paths, asked.rows, files.read):
        try:
            if isinstance(row, Fault):
                raise refusal(row)
            seen.see(row, tokenizer)
            shown += shown_examples(row, tokenizer, **policy)
        except DataError as error:
            if asked.too_long == "error" and not isinstance(row, Fault):
                raise
            left_out.append(error)
    if not shown:
        raise left_out[0] if left_out else DataError("holds no rows", where=files.name)
    notes = tuple(seen.about_template(tokenizer))
    if asked.strict and seen.unshown:
        raise DataError(notes[0])
    if page:
        text = tokens_page(shown, tokenizer, data=files.name, model=Path(model).name)
        write_new(page, text.encode())
    skipped = tuple(Skipped(error.where or "", error.message, error.hint) for error in left_out)
    rows = []
    for each in shown:
        made = pieces(each.tokens, tokenizer, single=True)
        tokens = tuple(ShownToken(piece.ids[0], piece.text, piece.weight) for piece in made)
        place = each.example, each.examples
        rows.append(ShownRow(each.row, tokens, each.learned, *place, each.notes))
    return shown, tokenizer, Shown(notes, tuple(rows), skipped, files.how.told, page)
