"""How people ask for each of the twenty tasks; the sentences stand in ``wordings.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


@dataclass(frozen=True, slots=True)
class Wordings:
    """The wordings of one task: those of every split but one, and those of ``unseen`` alone."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


@cache
def wordings() -> dict[str, Wordings]:
    """Wordings by task name; noun phrases are put into every frame, questions stand alone."""
    text = resources.files(__package__).joinpath("wordings.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return {
        name: Wordings(
            seen=(
                *(frame.format(ask) for ask in task["asks"] for frame in table["frames"]),
                *task["questions"],
            ),
            unseen=tuple(task["unseen"]),
        )
        for name, task in table["tasks"].items()
    }
