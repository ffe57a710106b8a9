"""``data trace``: where a row came from, and everything that was done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import DataError

if TYPE_CHECKING:
    from mlx_itune.dataset.importing.history import History, Step

_TEXT_SHOWN = 200


@options.command("trace", "mlx-itune data trace train:12 --data data")
@click.argument("row")
@click.option("--data", type=options.DIRECTORY, required=True, metavar="DIR")
@click.pass_context
def command(ctx: click.Context, row: str, data: Path, as_json: bool, offline: bool) -> None:
    """The whole history of one row, after checking that nobody rewrote it.

    ROW is a place in the folder (train:12), the file and line a row was read from
    (gsm8k.jsonl:7, removed and rejected rows too), or a row's id. Exit code 3 if the folder is
    not what its ledger says.
    """
    from mlx_itune.cli import report
    from mlx_itune.dataset.importing.history import history, text_at
    from mlx_itune.dataset.importing.ledger import read_entries, verify

    problems = verify(data)
    try:
        entries = read_entries(data)
        histories = history(data, row)
    except DataError:
        if not problems or not (data / "ledger.jsonl").exists():
            raise
        entries, histories = [], []
    head = entries[-1].get("hash") if entries else None
    if as_json:
        report.emit(
            {
                "row": row,
                "data": data,
                "verified": not problems,
                "problems": problems,
                "ledger": {"entries": len(entries), "head": head},
                "histories": [_as_json(one, text_at(data, one.now)) for one in histories],
            }
        )
    else:
        for one in histories:
            _tell(one, text_at(data, one.now))
        for problem in problems:
            print(f"TAMPERED: {problem}")
        if not problems:
            print(f"ledger verified: {len(entries)} steps, head {head}")
    if problems:
        ctx.exit(DataError.exit_code)


def _as_json(one: History, text: str | None) -> Mapping[str, Any]:
    return {
        "id": one.id,
        "now": one.now,
        "file": one.file,
        "line": one.line,
        "sha256": one.sha256,
        "text": text,
        "steps": [{**_when(step), **step.line} for step in one.steps],
    }


def _when(step: Step) -> Mapping[str, Any]:
    keys = ("n", "time", "operator", "tool", "version", "command", "settings")
    return {key: step.entry.get(key) for key in keys}


def _tell(one: History, text: str | None) -> None:
    from mlx_itune.cli import report

    print(f"{one.file}:{one.line} -> {one.now or 'not in the folder'}")
    shown: Sequence[tuple[str, str]] = [
        ("id", one.id or "-"),
        (f"sha256 of {one.file}", one.sha256 or "not recorded"),
        *([("text", _short(text))] if text else []),
    ]
    report.pairs((f"  {name}", value) for name, value in shown)
    for step in one.steps:
        at = step.entry
        who = f"{at.get('tool')} {at.get('version')}, {at.get('operator')}"
        place = f" as {step.line['at']}" if "at" in step.line else ""
        why = ": ".join(str(step.line[key]) for key in ("reason", "detail") if step.line.get(key))
        print(
            f"  {at.get('n')}. {at.get('time')} data {at.get('command')} ({who}): "
            f"{step.line.get('action')}{place}{f' ({why})' if why else ''}"
        )


def _short(text: str) -> str:
    from mlx_itune.kit.errors import one_line

    return one_line(text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]} ...")
