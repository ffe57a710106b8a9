"""``data trace``: where a row came from, and everything that was done to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs
from mlx_itune.kit.errors import DataError, one_line
from mlx_itune.kit.wording import count

if TYPE_CHECKING:
    from mlx_itune.dataset.importing.provenance import History

_TEXT_SHOWN = 200


@options.command("trace", "mlx-itune data trace train:12 --data data")
@click.argument("row")
@click.option("--data", type=options.DIRECTORY, required=True, metavar="DIR")
def command(row: str, data: Path) -> Result:
    """The whole history of one row, after checking that nobody rewrote the folder.

    ROW is a place in the folder (train:12), the file and line a row was read from
    (gsm8k.jsonl:7, removed and rejected rows too), or a row's id. Exit code 3 if the folder is
    not what its record says.
    """
    from mlx_itune.dataset.importing.provenance import trace, traceable, verify

    problems = verify(data)
    record = traceable(data)
    histories = trace(data, row)
    told = {
        "row": row,
        "data": data,
        "verified": not problems,
        "problems": problems,
        "ledger": {"entries": len(record.steps), "head": record.seal},
        "histories": histories,
    }
    sealed = f"verified: {count(len(record.steps), 'step')}, seal {record.seal}"
    return Result(told, _told(histories, problems, sealed), DataError.exit_code if problems else 0)


def _told(histories: Sequence[History], problems: Sequence[str], sealed: str) -> Iterator[str]:
    for one in histories:
        yield one_line(f"{one.file}:{one.line} -> {one.now or 'not in the folder'}")
        text = one.text or ""
        shown: list[tuple[str, str]] = [
            ("id", one.id or "-"),
            (f"sha256 of {one.file}", one.sha256 or "not recorded"),
            ("text", text[:_TEXT_SHOWN] + (" ..." if len(text) > _TEXT_SHOWN else "")),
        ]
        yield from (one_line(f"  {line}") for line in pairs(shown))
        yield from (one_line(_step(step)) for step in one.steps)
    yield from (one_line(f"CHANGED: {problem}") for problem in problems)
    if not problems:
        yield sealed


def _step(step: dict[str, Any]) -> str:
    why = ": ".join(str(step[key]) for key in ("reason", "detail") if step.get(key))
    return (
        f"  {step['n']}. {step['time']} data {step['command']} ({step['tool']} {step['version']}, "
        f"{step['operator']}): {step['action']}{f' ({why})' if why else ''}"
    )
