"""``resume``: go on with a run that was stopped, killed or cut off."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.cli.setting_flags import flag


@options.command("resume", "mlx-itune resume runs/20261122T201500Z-1a2b3c")
@click.argument("run")
@click.option(
    "--runs",
    type=options.DIRECTORY,
    default=Path("runs"),
    help="Where RUN is looked up if it is no folder (default: runs).",
)
@click.option("--out", type=options.DIRECTORY, help="Another place for the adapter.")
@flag("micro_batch_tokens", "For a run that did not fit; its last bits will differ.")
@flag("memory_gb", "The same.")
@click.option(
    "--allow-other-base",
    is_flag=True,
    help="Go on although base, tokenizer or template are not what the run began with.",
)
def command(
    run: str,
    runs: Path,
    out: Path | None,
    micro_batch_tokens: int | None,
    memory_gb: float | None,
    allow_other_base: bool,
) -> Result | None:
    """Continue RUN (a folder, `last`, or the start of an id) from its last checkpoint, bit for bit.

    Refuses when settings (exit 2), rows (3), or base model, tokenizer and template (4) are not
    those the run began with, naming each; and while another process trains it (5).
    """
    from mlx_itune.cli import trained
    from mlx_itune.cli.progress import Progress
    from mlx_itune.kit.json_files import plain
    from mlx_itune.training.engine.rank_choice import is_writer
    from mlx_itune.training.run.resume import resume
    from mlx_itune.training.run.run import find

    how = {"micro_batch_tokens": micro_batch_tokens, "memory_gb": memory_gb}
    how = {name: value for name, value in how.items() if value is not None}
    if not is_writer():
        # Its folder comes from process 0.
        resume(Path(run), how=how, allow_other_base=allow_other_base)
        return None
    folder = find(run, runs)
    with Progress() as progress:
        done = resume(
            folder,
            out=out,
            how=how,
            allow_other_base=allow_other_base,
            observe=progress.training,
        )
        if done.rewritten:
            progress.say("the run was finished; its adapter was missing and is written again")
        elif done.finished_before:
            progress.say("the run was finished, and its adapter is there: nothing to do")
    more = {"finished_before": done.finished_before, "rewritten": done.rewritten}
    return Result({**plain(done.result), **more}, trained.lines(done.result))
