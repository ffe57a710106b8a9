"""Files of rows as the data commands take them; what is told of them by all."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.settings import table_of
from mlx_itune.kit.wording import count
from mlx_itune.training.settings import table

if TYPE_CHECKING:
    from mlx_itune.api.rows import Repeated
    from mlx_itune.dataset.how import Account

_SOURCES_SHOWN = 10
_FIELDS = ("instruction", "output")
# Files whose format is not to be found out; what both may be is what an import takes.
FORM = "format map roles encoding no_input"
form = options.together(*(options.flag(table_of(ImportPlan)[name]) for name in FORM.split()))
about_tokens = options.together(
    options.flags("model-of-tokens template"),
    options.flag(
        table()["max_length"], "With --model: tell of longer rows, in tokens (data check: 2048)."
    ),
    options.flag(
        table()["learn"], "With --model: which assistant turns are learned (default all)."
    ),
    options.flags("template-option"),
)
page = click.option("--html", type=options.ANY_PATH, metavar="FILE", help="Write a page.")


def suggestion(told: Account, *words: object) -> Iterator[str]:
    """The command again, with what the columns of refused rows seem to be; nothing where that does
    not show."""
    from mlx_itune.dataset.formats.fields import guess

    if found := guess(told.refused):
        maps = [f"--map {shlex.quote(f'{f}={c}')}" for f, c in zip(_FIELDS, found, strict=True)]
        again = " ".join(["mlx-itune data", *(shlex.quote(str(word)) for word in words), *maps])
        yield one_line(f"by its looks, and for you to say: {again}")


def repeats_told(sources: Sequence[Repeated]) -> Iterator[str]:
    """Rows that are repeated from other files; nothing where all repeats are within a file."""
    found = sources[:_SOURCES_SHOWN]
    if any(each.later != each.earlier for each in found):
        for each in found:
            rows = count(each.rows, "row")
            yield one_line(f"repeated: {rows} of {each.later} in {each.earlier}")
