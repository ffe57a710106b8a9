"""``runs show``: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.runs.listing import RUNS

_INCIDENTS = 10
_NAMED = 3


@options.command("show", "mlx-itune runs show 20261122T201500Z-1a2b3c")
@click.argument("run")
@RUNS
def command(run: str, runs: Path, as_json: bool, offline: bool) -> None:
    """Settings, numbers, checkpoints, incidents of RUN (a folder, `last`, or an id's beginning)."""
    from mlx_itune.cli import report
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import find

    found = catalogue.details(find(run, runs))
    if as_json:
        report.emit(found)
        return
    of = f" of {found['steps']:,}" if found["steps"] else ""
    lines = [
        ("run", found["run"]),
        ("state", found["state"] + (f" ({found['held_by']})" if found["held_by"] else "")),
        ("steps", f"{found['step']:,}{of}"),
        ("train loss", report.number(found["train_loss"])),
        ("valid loss", report.number(found["valid_loss"])),
        ("best", report.number(found["best_valid_loss"])),
        ("size", report.megabytes(found["bytes"])),
    ]
    if found["result"]:
        lines.insert(2, ("adapter", str(found["result"].get("adapter"))))
    report.pairs(lines)
    print("\nsettings")
    report.pairs([(f"  {name}", str(value)) for name, value in found["config"].items()])
    if found["checkpoint_list"]:
        print("\ncheckpoints")
        for seal in found["checkpoint_list"]:
            best = "  best" if seal.best else ""
            print(f"  {seal.path}  {report.megabytes(seal.bytes)}{best}")
    _incidents(found["incident_list"], found["run"])
    if found["resume"]:
        print(f"\ncontinue with: {found['resume']}")


def _incidents(listed: list[dict[str, Any]], run: str) -> None:
    if not listed:
        return
    print("\nupdates that were not made")
    for incident in listed[:_INCIDENTS]:
        rows = incident.get("suspects") or incident.get("rows") or []
        named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
        print(
            f"  step {incident['step']}: loss {incident.get('loss')}, "
            f"gradient norm {incident.get('gradient_norm')}; {named}"
        )
    if len(listed) > _INCIDENTS:
        print(f"  and {len(listed) - _INCIDENTS} more in {run}/incidents.jsonl")
