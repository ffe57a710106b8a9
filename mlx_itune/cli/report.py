"""Leaves with its last user, for ``cli/result`` and ``kit/wording``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlx_itune.cli.result import Result, console, table
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.wording import duration as seconds
from mlx_itune.kit.wording import number, percent
from mlx_itune.kit.wording import size as megabytes

__all__ = [
    "console",
    "emit",
    "megabytes",
    "number",
    "pairs",
    "percent",
    "plain",
    "seconds",
    "table",
]


def emit(value: Any) -> None:
    """Print ``value`` as one JSON object."""
    Result(value).print(as_json=True)


def pairs(items: Iterable[tuple[str, str]]) -> None:
    """Print aligned "name  value" lines."""
    from mlx_itune.cli import result

    print(*result.pairs(items), sep="\n")
