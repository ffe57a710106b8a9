"""``data grow``: drafts of rows by a teacher on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, duration, number

if TYPE_CHECKING:
    from mlx_itune.api.grow import Grown


@options.command("data grow")
@options.flags(
    "source-of-drafts recipe out-of-drafts model adapter server server-model count-of-drafts "
    "temperature-of-drafts seed-of-drafts label-of-drafts schema-of-drafts agreement "
    "batch-of-drafts judge judge-model allow-remote-of-drafts compute template template-option"
)
def command(source: Path, out: Path, **settings: Any) -> Result:
    """A teacher drafts rows: from the passages of `data ingest`, seed tasks, or a few rows.

    Drafts are no rows: `data review` decides which become some. Every answer of the teacher is
    kept; the same command again goes on after Ctrl-C, and asks nothing twice. The teacher is a
    model on this machine (--model, --adapter), or behind an OpenAI-compatible server (--server).
    """
    from mlx_itune.api.grow import grow
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        made = grow(source, out, observe=progress.update, **settings)
    return Result(made, _lines(made))


def _lines(made: Grown) -> Iterator[str]:
    yield from pairs(
        [
            ("drafts", f"{made.drafts:,}"),
            ("accepted", f"{made.accepted:,}"),
            *((f"rejected: {one_line(why)}", f"{n:,}") for why, n in made.rejected.items()),
            ("mean doubt", number(made.mean_doubt, 2)),
            ("calls", f"{made.calls:,}, {made.asked:,} of them now, {duration(made.wall_s)}"),
        ]
    )
    if made.ended:
        yield f"fewer than --count: {made.ended}"
    drafts = count(made.accepted, "draft")
    yield f"{made.out}: {drafts}, which are no rows until somebody accepts them"
    yield f"next: mlx-itune data review {shlex.quote(made.out)}"
