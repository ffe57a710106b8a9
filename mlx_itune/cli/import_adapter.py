"""``import``: a PEFT adapter as one of ours, on the same base."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options


@options.command("import", "mlx-itune import peft-adapter --model starter --out adapter")
@click.argument("source", type=options.DIRECTORY, metavar="PEFT_DIR")
@options.model
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
def command(source: Path, model: str, out: Path, as_json: bool, offline: bool) -> None:
    """Read a PEFT adapter (LoRA, rsLoRA, DoRA) and write it as mlx-lm and this program read it.

    Each update is compared with PEFT's own; what has no such form is refused by name.
    """
    from mlx_itune.cli import report
    from mlx_itune.model.adapters.from_peft import import_peft

    done = import_peft(source, model, out, offline=offline)
    if as_json:
        report.emit(done)
        return
    print(f"{done.out}: {done.kind}, rank {done.rank}, scale {done.scale:g}, {done.layers} layers")
    difference = report.number(done.largest_difference, 2)
    print(f"largest difference of an update from PEFT's: {difference}")
    if done.padded:
        print(f"{done.padded} layers of a lower rank were padded with zeros")
    if done.folded:
        print(f"{done.folded} layers had another scale, which is now in their B")
