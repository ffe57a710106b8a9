"""What an import is asked to do, as the flags of `data import` say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from mlx_itune.dataset.conversation import SystemMode, SystemPrompt, system_prompt
from mlx_itune.dataset.how import Reading
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.settings import refuse_out_of_range
from mlx_itune.kit.wording import did_you_mean

Count = Annotated[int, Interval(ge=1, le=2**63 - 1)]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Texts = tuple[str, ...]


@dataclass(frozen=True)
class ImportPlan:
    """How to import. Raises UsageError for wishes that contradict each other."""

    HELP: ClassVar[Mapping[str, Sequence[str]]] = data_file(__file__, "plan")

    format: str | None = None
    kind: str | None = None
    map: Texts = ()
    roles: Texts = ()
    encoding: str | None = None
    no_input: str | None = None
    where: Texts = ()
    sample: Count | None = None
    seed: Seed = 0
    split: str | None = None
    group_by: str | None = None
    stratify: str | None = None
    cap: Count | None = None
    weights: str | None = None
    licence: Texts = ()
    name: str | None = None
    strict: bool = False
    system: str | None = None
    system_mode: SystemMode = "missing"
    operator: str | None = None

    def __post_init__(self) -> None:
        refuse_out_of_range(self)
        if (self.group_by or self.stratify) and not self.split:
            raise UsageError("--group-by and --stratify choose sides of a --split; give one")
        if self.weights and self.cap:
            raise UsageError("give --weights or --cap, not both")
        _ = self.reading
        from mlx_itune.dataset.formats import check_format

        check_format(self.format)

    @property
    def reading(self) -> Reading:
        """How the files are read. Raises UsageError."""
        return Reading.of(self)

    @property
    def system_prompt(self) -> SystemPrompt | None:
        """What `system` asks for. Raises UsageError, StorageError."""
        return system_prompt(self.system, self.system_mode)

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
