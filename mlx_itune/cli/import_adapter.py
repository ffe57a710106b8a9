"""``import``: a PEFT adapter as one of ours, on the same base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.kit.wording import count, number

if TYPE_CHECKING:
    from mlx_itune.model.adapters.from_peft import PeftImport


@options.command("import", "mlx-itune import peft-adapter --model starter --out adapter")
@click.argument("source", type=options.DIRECTORY, metavar="PEFT_DIR")
@options.model
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
def command(source: Path, model: str, out: Path) -> Result:
    """Read a PEFT adapter (LoRA, rsLoRA, DoRA) and write it as mlx-lm and this program read it.

    Each update is compared with PEFT's own; what has no such form is refused by name.
    """
    from mlx_itune.model.adapters.from_peft import import_peft

    done = import_peft(source, model, out)
    return Result(done, _lines(done))


def _lines(done: PeftImport) -> Iterator[str]:
    layers = count(done.layers, "layer")
    yield f"{done.out}: {done.kind}, rank {done.rank}, scale {done.scale:g}, {layers}"
    yield f"largest difference of an update from PEFT's: {number(done.largest_difference, 2)}"
    if done.padded:
        yield f"{count(done.padded, 'layer')} of a lower rank: padded with zeros"
    if done.folded:
        yield f"{count(done.folded, 'layer')} with another scale, which is now in their B"
