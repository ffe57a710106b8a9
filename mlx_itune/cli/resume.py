"""``resume``: go on with a run that was stopped, killed or cut off."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options


@options.command("resume", "mlx-itune resume runs/20261122T201500Z-1a2b3c")
@click.argument("run")
@click.option(
    "--runs",
    type=options.DIRECTORY,
    default=Path("runs"),
    help="Where RUN is looked up if it is an id (default: runs).",
)
@click.option("--out", type=options.DIRECTORY, help="Another place for the adapter.")
@click.option(
    "--micro-batch-tokens",
    type=click.IntRange(1),
    help="For a run that did not fit. The same function, but its last bits will differ.",
)
@click.option("--memory-gb", type=float, help="The same.")
def command(
    run: str,
    runs: Path,
    out: Path | None,
    micro_batch_tokens: int | None,
    memory_gb: float | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Continue RUN (a folder, `last`, or the start of an id) from its last checkpoint, bit for bit.

    Refuses when settings (exit 2), rows (3), or base model, tokenizer and template (4) are not
    those the run began with, naming each; and while another process trains it (5).
    """
    from mlx_itune.cli import report, trained
    from mlx_itune.cli.progress import Progress
    from mlx_itune.training.engine.rank_choice import is_writer
    from mlx_itune.training.run.resume import resume
    from mlx_itune.training.run.run import find

    how = {"micro_batch_tokens": micro_batch_tokens, "memory_gb": memory_gb}
    how = {name: value for name, value in how.items() if value is not None}
    if not is_writer():
        # Its folder comes from process 0.
        resume(Path(run), how=how, offline=offline)
        return
    folder = find(run, runs)
    with Progress() as progress:
        done = resume(
            folder,
            out=out,
            how=how,
            offline=offline,
            observe=progress.training,
        )
        if done.rewritten:
            progress.say("the run was finished; its adapter was missing and is written again")
        elif done.finished_before:
            progress.say("the run was finished, and its adapter is there: nothing to do")
    if as_json:
        more = {"finished_before": done.finished_before, "rewritten": done.rewritten}
        report.emit({**report.plain(done.result), **more})
    else:
        trained.tell(done.result)
