"""``data show``: the tokens a model would be trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.kit.errors import DataError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_itune.dataset.faults import Fault
    from mlx_itune.dataset.tokens.shown_example import Examined, Piece
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

_FAULTS_SHOWN = 3


@options.command("show", "mlx-itune data show rows.jsonl --model starter --rows 2")
@click.argument("data", type=options.ANY_PATH)
@options.model
@click.option(
    "--rows",
    "count",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="The first N rows, read no further than that.",
)
@click.option(
    "--row",
    "wanted",
    multiple=True,
    metavar="ROW",
    help="Instead: one row, as file:line, split:line, a line number or an id; may be repeated.",
)
@click.option(
    "--learn", type=click.Choice(["all", "last", "marked"]), default="all", show_default=True
)
@click.option("--max-length", type=click.IntRange(2), default=2048, show_default=True)
@click.option(
    "--too-long",
    type=click.Choice(["split", "truncate", "drop", "error"]),
    default="split",
    show_default=True,
    help="What becomes of a row over --max-length.",
)
@options.template
@reading.forced_format
@click.option("--tokens", "borders", is_flag=True, help="Show where each token begins.")
@click.option("--html", type=options.ANY_PATH, metavar="FILE", help="Write a page instead.")
def command(
    data: Path,
    model: str,
    count: int,
    wanted: tuple[str, ...],
    learn: Any,
    max_length: int,
    too_long: Any,
    template: str | None,
    format_name: str | None,
    columns: tuple[str, ...],
    borders: bool,
    html: Path | None,
    as_json: bool,
    offline: bool,
) -> None:
    """The tokens a model would be trained on; learned ones stand out.

    Where there is no colour, learned runs stand between [[ and ]]; a weight other than 1 is
    written in front.
    """
    from mlx_itune.dataset.tokens.find_rows import first_rows, pick_rows
    from mlx_itune.dataset.tokens.shown_example import examine
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.model.loading.base import resolve, vet

    page_path = reading.html_path(html)
    files = reading.RowFiles([data], format_name, columns)
    path = resolve(model, offline=offline)
    vet(path)
    tokenizer = load_tokenizer(path, template=template or "auto")
    broken: list[Fault] = []
    if wanted:
        rows = pick_rows(files.paths, wanted, files.read)
    else:
        rows = first_rows(files.paths, count, files.read, broken.append)
    skipped: list[DataError] = []

    def examined() -> Iterator[Examined]:
        for row in rows:
            try:
                yield from examine(
                    row, tokenizer, max_length_tokens=max_length, learn=learn, too_long=too_long
                )
            except DataError as error:
                if too_long == "error":
                    raise
                skipped.append(error)

    if as_json or page_path:
        found = list(examined())
    else:
        found = list(_printed(examined(), tokenizer, borders))
    if not found:
        raise _nothing_shown(files, skipped, broken)
    if page_path:
        from mlx_itune.dataset.tokens.tokens_page import tokens_page
        from mlx_itune.kit.files import write_durably

        shown = tokens_page(found, tokenizer, data=files.name, model=path.name)
        write_durably(page_path, shown.encode())
    _tell_left_out(skipped, broken)
    if as_json:
        left_out = [{"row": error.where, "reason": error.message} for error in skipped]
        left_out += [
            {"row": f"{fault.file}:{fault.line}", "reason": f"{fault.code}: {fault.message}"}
            for fault in broken
        ]
        _emit(found, tokenizer, left_out, page_path)
    elif page_path:
        print(f"{one_line(str(page_path))}: {len(found):,} examples")


def _emit(
    found: list[Examined],
    tokenizer: ChatTokenizer,
    left_out: list[dict[str, str | None]],
    page_path: Path | None,
) -> None:
    from mlx_itune.cli import report
    from mlx_itune.dataset.tokens.token_text import token_texts

    rows = []
    for examined in found:
        ids = examined.tokens.input_ids.tolist()
        weights = examined.tokens.weights.tolist()
        texts = token_texts(tokenizer, ids)
        rows.append(
            {
                "row": examined.row,
                "tokens": [
                    {"id": i, "text": text, "weight": weight}
                    for i, text, weight in zip(ids, texts, weights, strict=True)
                ],
                "learned": examined.learned,
                "example": examined.example,
                "examples": examined.examples,
                "notes": examined.notes,
            }
        )
    report.emit({"rows": rows, "skipped": left_out, "html": page_path})


def _printed(
    examples: Iterable[Examined], tokenizer: ChatTokenizer, borders: bool
) -> Iterator[Examined]:
    """Each example, printed as it comes."""
    from mlx_itune.cli import report
    from mlx_itune.dataset.tokens.shown_example import pieces, single_tokens

    out = report.console()
    for examined in examples:
        made = single_tokens if borders else pieces
        _print(out, examined, list(made(examined.tokens, tokenizer)), borders)
        yield examined


def _print(out: Console, examined: Examined, made: list[Piece], borders: bool) -> None:
    from rich.text import Text

    total = len(examined.tokens.input_ids)
    number = (
        f" (example {examined.example} of {examined.examples})" if examined.examples > 1 else ""
    )
    heading = f"{one_line(examined.row)}{number}: {examined.learned} of {total} tokens learned"
    out.print(Text(heading, style="bold"), soft_wrap=True)
    for note in examined.notes:
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    coloured = out.color_system is not None and not out.no_color
    text = Text()
    start = 0
    while start < len(made):
        stop = start
        while stop < len(made) and made[stop].weight == made[start].weight:
            stop += 1
        run = made[start:stop] if borders else _joined(made[start:stop])
        _append_run(text, run, coloured, borders)
        start = stop
    out.print(text, soft_wrap=True)
    out.print()


def _append_run(text: Any, run: list[Piece], coloured: bool, borders: bool) -> None:
    """Pieces of one weight: a style where there is colour, brackets where there is none."""
    weight = run[0].weight
    style = "dim" if not weight else "bold green" if weight == 1 else "green"
    if weight > 1:
        style = "bold magenta"
    label = "" if weight in (0, 1) else f"{weight:.4g}"
    if not coloured and weight:
        text.append(f"[[{label}: " if label else "[[")
    elif label:
        text.append(f"‹{label}›", style="cyan")
    for number, piece in enumerate(run):
        if borders and number:
            text.append("│", style="bright_black" if coloured else "")
        shown = _terminal_text(piece.text)
        if coloured and weight:
            # White space beside a control token is as much a border as the ends of the run.
            first = not number or run[number - 1].control
            last = number == len(run) - 1 or run[number + 1].control
            shown = _marked(shown, first=first, last=last)
        elif borders:
            shown = shown.replace("\n", "↵\n")
        kind = f"{style} reverse" if piece.control else style
        text.append(shown, style=kind if coloured else "")
    if not coloured and weight:
        text.append("]]")


def _joined(run: list[Piece]) -> list[Piece]:
    """Neighbours that look alike as one piece."""
    from dataclasses import replace

    joined: list[Piece] = []
    for piece in run:
        if joined and joined[-1].control == piece.control:
            joined[-1] = replace(joined[-1], text=joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def _marked(text: str, *, first: bool, last: bool) -> str:
    """White space where a learned run begins or ends, made visible."""
    body = text.strip(" \n")
    if not body:
        return text.replace(" ", "·").replace("\n", "↵\n") if first or last else text
    before, _, after = text.partition(body)
    if first:
        before = before.replace(" ", "·").replace("\n", "↵\n")
    if last:
        after = after.replace(" ", "·").replace("\n", "↵\n")
    return before + body + after


def _terminal_text(text: str) -> str:
    """Text that cannot move the cursor, change colours or turn the reading direction."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in text.split("\n"))


def _nothing_shown(
    files: reading.RowFiles, skipped: list[DataError], broken: list[Fault]
) -> DataError:
    if skipped:
        return skipped[0]
    if broken:
        return DataError(
            f"no row can be read, the first: {broken[0]}",
            where=files.name,
            hint="see mlx-itune data check",
        )
    return DataError("holds no rows", where=files.name)


def _tell_left_out(skipped: list[DataError], broken: list[Fault]) -> None:
    left_out = [*map(str, skipped), *(one_line(str(fault)) for fault in broken)]
    for line in left_out[:_FAULTS_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if len(left_out) > _FAULTS_SHOWN:
        print(f"left out: {len(left_out) - _FAULTS_SHOWN:,} more rows", file=sys.stderr)
