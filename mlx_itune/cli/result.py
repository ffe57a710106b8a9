"""What a command found: one JSON object for scripts, lines and tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_itune.kit.json_files import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Result:
    """data: a record or mapping, what ``--json`` prints. lines: texts and tables, made when they
    are printed. exit_code: of the command, where it found what it looked for (a fault, say)."""

    data: Any
    lines: Iterable[Any] = ()
    exit_code: int = 0

    def print(self, as_json: bool) -> None:
        """Print it on stdout, in one form or the other."""
        if as_json:
            print(json.dumps(plain(self.data), ensure_ascii=False, allow_nan=False))
            return
        for line in self.lines:
            if isinstance(line, str):
                print(line)
            else:
                # Tables fit the terminal; a styled text is broken nowhere but where it says so.
                console().print(line, soft_wrap=type(line).__name__ == "Text")


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide enough for a table when the output is a pipe."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            """The command ends as it does when `print` finds that the reader has gone."""
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 100
    return Piped(file=stream, highlight=False, soft_wrap=False, width=width)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Table:
    """A plain table: the first column left, the others right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        made.add_row(*row)
    return made


def pairs(items: Iterable[tuple[str, object]]) -> list[str]:
    """Aligned "name  value" lines."""
    listed = list(items)
    width = max((len(name) for name, _ in listed), default=0)
    return [f"{name:<{width}}  {value}" for name, value in listed]
