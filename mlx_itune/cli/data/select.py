"""``data select``: which rows of many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.wording import number

if TYPE_CHECKING:
    from mlx_itune.api.select import Selected


@options.command("data select")
@options.flags(
    "model-to-select data rows-to-select ways-to-select steps-to-select seed-of-select "
    "out-directory"
)
def command(
    model: str, data: Path, rows: int, by: tuple[str, ...], steps: int, seed: int, out: Path
) -> Result:
    """Choose the training rows of a data set that a model learns the most from.

    loss-gain: whose answers get no easier when a row like them is shown before (MIWV); help: that
    the model finds easier after a little of your validation rows; longest; random. Each way is
    tried by a short run and measured on validation rows, random always among them.
    """
    from mlx_itune.api.select import select
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        made = select(
            model,
            data,
            count=rows,
            out=out,
            by=by,
            steps=steps,
            seed=seed,
            observe=progress.update,
        )
    return Result(made, _lines(made))


def _lines(made: Selected) -> Iterator[Any]:
    if made.steps:
        rows = [[each.by, number(each.loss), *_apart(each.low, each.high)] for each in made.tried]
        yield table(["by", "validation loss", "against random, 95 % interval"], rows)
    yield f"{made.out}: {made.rows:,} of {made.of:,} training rows, by {made.by}"
    if made.better is False:
        yield f"random is as good after {made.steps:,} steps: {made.by} does not beat it by more "
        yield "than chance; more rows may help more than choosing them"


def _apart(low: float | None, high: float | None) -> list[str]:
    return ["-"] if low is None or high is None else [f"{low:+.4f} to {high:+.4f}"]
