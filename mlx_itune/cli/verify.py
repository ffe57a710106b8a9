"""``verify``: whether a bundle is what its manifest says."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.kit.wording import count, size


@options.command("verify", "mlx-itune verify shipped")
@click.argument("bundle", type=options.DIRECTORY, metavar="BUNDLE")
def command(bundle: Path) -> Result:
    """Compare a bundle (`export --bundle`) with its manifest; exit code 4 if a file differs."""
    from mlx_itune.export.shipping.bundle import check_bundle

    checked = check_bundle(bundle)
    total = size(sum(file.bytes for file in checked.files))
    files = count(len(checked.files), "file")
    about = {"path": str(bundle), **vars(checked)}
    return Result(about, [f"{bundle}: {files}, {total}, each as the manifest says"])
