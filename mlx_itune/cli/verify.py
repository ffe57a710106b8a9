"""``verify``: whether a bundle is what its manifest says."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options


@options.command("verify", "mlx-itune verify shipped")
@click.argument("bundle", type=options.DIRECTORY, metavar="BUNDLE")
def command(bundle: Path, as_json: bool, offline: bool) -> None:
    """Compare a bundle (`export --bundle`) with its manifest; exit code 4 if a file differs."""
    from mlx_itune.cli import report
    from mlx_itune.export.shipping.bundle import check_bundle

    checked = check_bundle(bundle)
    if as_json:
        report.emit(checked)
        return
    size = report.megabytes(sum(file.bytes for file in checked.files))
    print(f"{bundle}: {len(checked.files)} files, {size}, each as the manifest says")
