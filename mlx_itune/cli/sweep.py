"""``sweep``: several settings on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.wording import duration
from mlx_itune.training.settings import table as settings_table

if TYPE_CHECKING:
    from mlx_itune.api.sweep import Swept

# What the sweep decides for its runs.
_NOT = frozenset("out time stop_at offline runs".split())


@options.command("sweep")
@options.flags("over more-over by-of-sweep budget out-of-sweep")
@options.together(
    *(options.flag(s, checked=False) for name, s in settings_table().items() if name not in _NOT)
)
def command(
    over: tuple[str, ...],
    more: tuple[str, ...],
    by: str,
    budget: str | None,
    out: Path,
    offline: bool,
    **given: Any,
) -> Result:
    """Train with several settings and keep the best: all a few steps, the better half of them twice
    as many, and so on, until one is through.

    A sweep that was stopped goes on where it was by the same command.
    """
    from mlx_itune.api.sweep import sweep
    from mlx_itune.cli.progress import Progress
    from mlx_itune.kit.errors import UsageError

    if missing := [f"--{name}" for name in ("model", "data") if given[name] is None]:
        raise UsageError(f"missing {', '.join(missing)}", hint="see mlx-itune sweep --help")
    given = {name: value for name, value in given.items() if value not in (None, ())}
    with Progress() as progress:
        try:
            found = sweep(
                **given,
                over=(*over, *more),
                by=by,
                budget=budget,
                out=out,
                offline=offline or None,
                observe=progress.update,
            )
        except KeyboardInterrupt:
            progress.say(f"stopped; the same command goes on where {out} is")
            raise
    return Result(found, _told(found))


def _told(found: Swept) -> Iterator[Any]:
    from mlx_itune.api.sweep import rows_of_table, verdict

    names = (name.replace("_", "-") for name in found.best.settings)
    yield table(["", *names, "", "step", found.by], rows_of_table(found))
    yield f"best: {verdict(found)}"
    yield from (f"note: {note}" for note in found.notes)
    yield f"time: {duration(found.wall_s)}"
    yield f"page: {found.page}"
    yield f"adapter: {found.best.adapter}"
