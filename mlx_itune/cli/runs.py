"""``runs``: what was trained; list, show, verify, prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import LazyGroup, options
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.wording import count, listing, number, size

_INCIDENTS = 10

RUNS = click.option(
    "--runs", type=options.DIRECTORY, default=Path("runs"), help="Where runs are (default: runs)."
)
command = LazyGroup(
    "runs",
    table={
        "list": ("runs:list_runs", "Every run, one line each."),
        "show": ("runs:show", "One run: settings, numbers, checkpoints, incidents."),
        "verify": ("runs:verify", "Are the checkpoints what was sealed?"),
        "prune": ("runs:prune", "Old checkpoints and runs; shown first, removed with --yes."),
    },
    help="What was trained: list, show, verify, prune.",
)


@options.command("list", "mlx-itune runs list")
@RUNS
def list_runs(runs: Path) -> Result:
    """Every run: running, finished, stopped (by a signal), killed, failed or diverged."""
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import all_in

    found = [catalogue.standing(folder) for folder in all_in(runs)]
    return Result({"runs": found}, _listed(found, runs))


def _listed(found: Sequence[Any], runs: Path) -> Iterator[Any]:
    if not found:
        yield f"no runs in {runs}"
        return
    rows = (
        [
            Path(run.run).name,
            run.state,
            f"{run.step}/{run.steps}" if run.steps else f"{run.step}",
            number(run.train_loss, 3),
            number(run.valid_loss, 3),
            number(run.best_valid_loss, 3),
            size(run.bytes),
        ]
        for run in found
    )
    yield table(["run", "state", "step", "train", "valid", "best", "size"], rows)
    for run in found:
        if run.resume:
            yield f"{run.state}, continue with:\n  {run.resume}"


@options.command("show", "mlx-itune runs show last")
@click.argument("run")
@RUNS
def show(run: str, runs: Path) -> Result:
    """Settings, numbers, checkpoints, incidents of RUN (a folder, `last`, or an id's beginning)."""
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import find

    found = catalogue.details(find(run, runs))
    return Result(found, _shown(found))


def _shown(found: dict[str, Any]) -> Iterator[str]:
    holder = f" ({found['held_by']})" if found["held_by"] else ""
    lines = [
        ("run", found["run"]),
        ("state", found["state"] + holder),
        ("steps", f"{found['step']:,} of {found['steps']:,}" if found["steps"] else found["step"]),
        ("train loss", number(found["train_loss"])),
        ("valid loss", number(found["valid_loss"])),
        ("best", number(found["best_valid_loss"])),
        ("size", size(found["bytes"])),
    ]
    if found["result"]:
        lines.insert(2, ("adapter", found["result"].adapter))
    yield from pairs(lines)
    yield "\nsettings"
    yield from pairs((f"  {name}", value) for name, value in found["config"].items())
    if found["checkpoint_list"]:
        yield "\ncheckpoints"
    for seal in found["checkpoint_list"]:
        yield f"  {seal.path}  {size(seal.bytes)}{'  best' if seal.best else ''}"
    incidents = found["incident_list"]
    if incidents:
        yield "\nupdates that were not made"
    for incident in incidents[:_INCIDENTS]:
        norm = f"gradient norm {incident.gradient_norm}"
        rows = listing(incident.suspects or incident.rows)
        yield f"  step {incident.step}: loss {incident.loss}, {norm}; {rows}"
    if len(incidents) > _INCIDENTS:
        yield f"  and {len(incidents) - _INCIDENTS} more in {found['run']}/incidents.jsonl"
    if found["resume"]:
        yield f"\ncontinue with: {found['resume']}"


@options.command("verify", "mlx-itune runs verify")
@click.argument("run", nargs=-1)
@RUNS
def verify(run: tuple[str, ...], runs: Path) -> Result:
    """Compare every file of every checkpoint with its manifest; all runs unless RUN names some.

    Exit code 5 if any differs.
    """
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import all_in, find

    folders = [find(name, runs) for name in run] or all_in(runs)
    seals = [seal for folder in folders for seal in catalogue.seals(folder)]
    broken = [seal for seal in seals if seal.fault]
    lines = [f"{'broken' if seal.fault else 'ok':<7} {seal.path}" for seal in seals]
    lines += [f"broken: {seal.fault}" for seal in broken]
    if broken:
        lines.append("resume goes on from the last undamaged checkpoint")
    else:
        held = f"{count(len(seals), 'checkpoint')} of {count(len(folders), 'run')}"
        lines.append(f"{held}: all as sealed")
    code = StorageError.exit_code if broken else 0
    return Result({"checkpoints": seals, "broken": len(broken)}, lines, exit_code=code)


@options.command("prune", "mlx-itune runs prune --keep 1 --yes")
@click.argument("run", nargs=-1)
@RUNS
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Newest checkpoints to keep in each run; the best one stays as well.",
)
@click.option(
    "--keep-runs", type=click.IntRange(0), help="Remove whole runs but for so many of the newest."
)
@click.option("--unfinished", is_flag=True, help="Whole runs that could be resumed go too.")
@click.option(
    "--yes/--dry-run", default=False, help="Do it; without, what would go is only printed."
)
def prune(
    run: tuple[str, ...],
    runs: Path,
    keep: int,
    keep_runs: int | None,
    unfinished: bool,
    yes: bool,
) -> Result:
    """Remove checkpoints that are neither among the newest nor the best; all runs, or each RUN.

    A run that is training is left alone, and adapters are never touched.
    """
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import all_in, find

    folders = [find(name, runs) for name in run] or all_in(runs)
    going = catalogue.prune(
        folders, keep=keep, keep_runs=keep_runs, unfinished=unfinished, really=yes
    )
    total = sum(item.bytes for item in going)
    lines = [f"{size(item.bytes):>12}  {item.path}  ({item.why})" for item in going]
    if not going:
        lines.append("nothing to remove")
    elif yes:
        lines.append(f"removed: {size(total)}")
    else:
        lines.append(f"would free {size(total)}; --yes removes them")
    return Result({"removed": yes, "bytes": total, "paths": going}, lines)
