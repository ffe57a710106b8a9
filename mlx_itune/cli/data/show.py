"""``data show``: the tokens a model would be trained on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result, console
from mlx_itune.kit.errors import DataError, one_line
from mlx_itune.kit.wording import count
from mlx_itune.training.settings import table

if TYPE_CHECKING:
    from rich.text import Text

    from mlx_itune.dataset.rendering.show_rows import Piece, ShownExample
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

_LEFT_OUT_SHOWN = 3
_EDGES = re.compile(r"\A[ \n]+|[ \n]+\Z")


@options.command("data show")
@options.based
@options.flags("data-file model adapter rows row-wanted")
@options.flag(table()["learn"], defaulted=True)
@options.flag(table()["max_length"], defaulted=True)
@options.flag(table()["too_long"], defaulted=True)
@options.flags("template template-option strict-about-template")
@options.flag(table()["system"])
@options.flag(table()["system_mode"], defaulted=True)
@reading.form
@options.flags("tokens")
@reading.page
def command(data: Path, borders: bool, html: Path | None, **how: Any) -> Result:
    """The tokens a model would be trained on; learned ones stand out.

    Where there is no colour, learned runs stand between [[ and ]]; a weight other than 1 is
    written in front.
    """
    from mlx_itune.api.shown import examples_shown

    examples, tokenizer, found = examples_shown(data, html=html, **how)
    told = [str(DataError(each.reason, where=each.row, hint=each.hint)) for each in found.skipped]
    more = len(told) - _LEFT_OUT_SHOWN
    for line in [*told[:_LEFT_OUT_SHOWN], *([count(more, "more row")] if more > 0 else [])]:
        print(f"left out: {line}", file=sys.stderr)
    options.tell([*found.told.lines(), *found.notes])
    if html is None:
        return Result(found, _lines(examples, tokenizer, borders))
    return Result(found, [f"{one_line(str(html))}: {count(len(examples), 'example')}"])


def _lines(
    examples: Iterable[ShownExample], tokenizer: ChatTokenizer, borders: bool
) -> Iterator[Text | str]:
    from rich.text import Text

    from mlx_itune.dataset.rendering.show_rows import pieces

    out = console()
    coloured = out.color_system is not None and not out.no_color
    for shown in examples:
        total = len(shown.tokens.input_ids)
        yield Text(f"{one_line(shown.title)}: {shown.learned} of {total} tokens learned", "bold")
        for note in shown.notes:
            yield Text(f"note: {note}", "yellow")
        made = pieces(shown.tokens, tokenizer, single=borders)
        text = Text()
        for weight, run in groupby(made, key=lambda piece: piece.weight):
            _append_run(text, weight, run, coloured, "│" if borders else "")
        yield text
        yield ""


def _append_run(
    text: Text, weight: float, run: Iterable[Piece], coloured: bool, border: str
) -> None:
    """Pieces of one weight: a style where there is colour, brackets where there is none."""
    style = "bold magenta" if weight > 1 else "bold green" if weight == 1 else "green"
    if not weight:
        style = "dim"
    label = "" if weight in (0, 1) else f"{weight:.4g}"
    if not coloured and weight:
        text.append(f"[[{label}: " if label else "[[")
    elif label:
        text.append(f"‹{label}›", style="cyan")
    for number, (control, alike) in enumerate(groupby(run, key=lambda piece: piece.control)):
        if number:
            text.append(border)
        words = border.join(_terminal_text(piece.text) for piece in alike)
        if coloured and weight:
            # White space beside a control token is as much a border as the ends of the run.
            words = _EDGES.sub(lambda at: at[0].replace(" ", "·").replace("\n", "↵\n"), words)
        elif border:
            words = words.replace("\n", "↵\n")
        kind = f"{style} reverse" if control else style
        text.append(words, style=kind if coloured else "")
    if not coloured and weight:
        text.append("]]")


def _terminal_text(text: str) -> str:
    """Text that cannot move the cursor, change colours or turn the reading direction."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in text.split("\n"))
