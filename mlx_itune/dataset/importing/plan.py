"""What an import is asked to do, as the flags of `data import` say it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import Help, refuse_out_of_range
from mlx_itune.kit.wording import did_you_mean

Count = Annotated[int, Interval(ge=1, le=2**63 - 1)]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Texts = tuple[str, ...]


@dataclass(frozen=True)
class ImportPlan:
    """How to import. Raises UsageError for wishes that contradict each other."""

    format: Annotated[str | None, Help("Read every row as this format.", "F")] = None
    kind: Annotated[str | None, Help("Read every file as jsonl, json, csv, text ...", "K")] = None
    map: Annotated[
        Texts, Help("Which column holds a field, such as instruction=question.", "FIELD=COLUMN")
    ] = ()
    where: Annotated[
        Texts, Help("Keep rows with this tag (or key!=value); of several, all hold.", "KEY=VALUE")
    ] = ()
    sample: Annotated[Count | None, Help("N rows, chosen by content.", "N")] = None
    seed: Annotated[Seed, Help("Of the sample and the splits.")] = 0
    split: Annotated[
        str | None,
        Help(
            "Shares of train/valid/test, such as 0.9/0.05/0.05. Without it rows keep the split "
            "their file is named after; all others go to train.",
            "A/B/C",
        ),
    ] = None
    group_by: Annotated[
        str | None,
        Help("Keep rows of one value on one side of the split; or of one 'first-turn'.", "TAG"),
    ] = None
    stratify: Annotated[
        str | None, Help("Give each value of a tag rows in every split; report its shares.", "TAG")
    ] = None
    cap: Annotated[Count | None, Help("At most N rows of each source.", "N")] = None
    weights: Annotated[
        str | None, Help("Shares of the sources, such as flan=0.4,cot=0.05.", "NAME=W,...")
    ] = None
    licence: Annotated[
        Texts, Help("Of the sources, or of one.", "[NAME=]TEXT", ("--licence", "--license"))
    ] = ()
    name: Annotated[str | None, Help("What to call the source, if not after its file.")] = None
    strict: Annotated[
        bool,
        Help(
            "Write nothing if any row is broken, or leave such rows out (default).",
            flags=("--strict/--drop-faults",),
        ),
    ] = False
    operator: Annotated[str | None, Help("Name for the record; yours unless given.", "WHO")] = None

    def __post_init__(self) -> None:
        refuse_out_of_range(self)
        if (self.group_by or self.stratify) and not self.split:
            raise UsageError("--group-by and --stratify choose sides of a --split; give one")
        if self.weights and self.cap:
            raise UsageError("give --weights or --cap, not both")
        from mlx_itune.dataset.formats import check_format

        check_format(self.format)

    @property
    def columns(self) -> dict[str, str] | None:
        """`map` as field -> column; None where nothing is mapped."""
        return _pairs("--map", self.map) or None

    @property
    def rates(self) -> dict[str, float] | None:
        """`weights` as source -> weight."""
        if self.weights is None:
            return None
        rates = {}
        for name, text in _pairs("--weights", self.weights.split(",")).items():
            try:
                rates[name] = float(text)
            except ValueError:
                raise UsageError(f"the weight of {name!r} is {text!r}, not a number") from None
        return rates

    def licences(self, sources: Iterable[str]) -> dict[str, str]:
        """`licence` by source. Raises UsageError for a name that is no source."""
        given = dict.fromkeys(sources, "")
        named = {}
        for text in self.licence:
            name, equals, licence = (part.strip() for part in text.partition("="))
            if not equals:
                given = dict.fromkeys(given, name)
            elif name in given:
                named[name] = licence
            else:
                hint = did_you_mean(name, given) or "the sources are " + ", ".join(given)
                raise UsageError(f"--licence is given for {name!r}, which is no source", hint=hint)
        return given | named


def _pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """ "a=b" texts as a table. Raises UsageError for another text or a name that occurs twice."""
    table: dict[str, str] = {}
    for text in texts:
        key, _, value = (part.strip() for part in text.partition("="))
        if not key or not value:
            raise UsageError(f"{flag} {text!r} is not NAME=VALUE")
        if key in table:
            raise UsageError(f"{flag} names {key!r} twice")
        table[key] = value
    return table
