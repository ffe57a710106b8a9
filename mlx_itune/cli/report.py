"""What reaches stdout: one JSON object, or text and tables for people."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide enough for a table when the output is a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, highlight=False, soft_wrap=False, width=None if stream.isatty() else 100
    )


def emit(value: Any) -> None:
    """Print ``value`` (a dataclass or JSON value) as one JSON object; no NaN, no infinity."""
    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values; a non-finite number becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


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


def pairs(items: Iterable[tuple[str, str]]) -> None:
    """Print aligned "name  value" lines."""
    listed = list(items)
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def percent(share: float | None) -> str:
    """0.925 as "92.5 %"; nothing measured as a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None, digits: int = 4) -> str:
    """A loss or a divergence; nothing measured as a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def megabytes(count_bytes: int) -> str:
    """A size in MB of a million bytes."""
    return f"{count_bytes / 1e6:,.1f} MB"


def seconds(elapsed_s: float) -> str:
    """A duration: "4.2 s", "3 min 05 s"."""
    if elapsed_s < 60:
        return f"{elapsed_s:.1f} s"
    minutes, rest = divmod(round(elapsed_s), 60)
    return f"{minutes} min {rest:02d} s"
