"""How rows are read, where it is not to be found out, and what is told of them besides their
faults: each kind once, with the number of its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from mlx_itune.dataset.conversation import ROLES, SystemPrompt
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import count, listing

# Fields that hold lists; all others hold text.
LISTS = frozenset({"messages", "conversations", "instances", "tools", "functions", "history"})
TEXTS = frozenset(
    "instruction input output question answer prompt completion inputs targets text system "
    "response context reasoning chosen rejected".split()
)
# A tag is any other name, so only a near miss is taken for a typo.
_NEAR = 0.85
# Tags that say where a row is from: --strict does not mind them.
_PLACES = frozenset({"id", "source", "origin", "given_origin", "kind"})
# Those of them that an import writes into its folder.
_OF_IMPORTS = frozenset({"source", "origin"})
# Names are anybody's; past so many of them the rest is one kind.
_MOST_KINDS = 1000
_SHOWN = 12
# What looks like a flag of what is learned, and is none that is read.
_MASK = re.compile("train|loss|mask|weight|learn|supervis", re.IGNORECASE)
_LIKE = "; if it is to say what is learned, call it loss_mask, of a turn"
_LOOKED_AT, _LOOKED_AT_CHARS = 200, 2000


@dataclass
class Account:
    """Counts of rows by kind, while they are read.

    `lost`: what they say that goes nowhere; `tags`: columns that are kept beside the turns, and
    not learned; `taken`: what is learned in another form, or read otherwise, than it stands.
    """

    lost: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _refused: list[Mapping[str, Any]] = field(default_factory=list)
    # Tags that an import wrote: nobody has to be told of them.
    _written: frozenset[str] = frozenset()
    _here: set[tuple[str, str]] = field(default_factory=set)

    def lose(self, kind: str) -> None:
        """Of the row that is being read, something is left out."""
        self._here.add(("lost", kind))

    def take(self, kind: str) -> None:
        """Of the row that is being read, something is taken in this way."""
        self._here.add(("taken", kind))

    def note(self, said: str) -> None:
        """Something about a whole file, once."""
        if said not in self.notes:
            self.notes.append(said)

    def refuse(self, row: Mapping[str, Any]) -> None:
        """A row of a table in which no format is known."""
        if len(self._refused) < _LOOKED_AT:
            self._refused.append({key: str(row[key])[:_LOOKED_AT_CHARS] for key in row})

    def of_file(self, *, imported: bool) -> None:
        """The rows that follow are of a file, which an import may have written."""
        self._written = _OF_IMPORTS if imported else frozenset()

    def row(self, tags: Iterable[str] | None) -> None:
        """The row is read, with these tags; None: it was refused, so there is nothing to tell."""
        if self._here:
            for name, kind in self._here if tags is not None else ():
                self._add(getattr(self, name), (kind,))
            self._here.clear()
        if tags:
            self._add(self.tags, [tag for tag in tags if tag not in self._written])

    def again(self) -> None:
        """Forget all: the rows are read once more."""
        for counts in (self.lost, self.tags, self.taken, self.notes, self._refused):
            counts.clear()

    @property
    def refused(self) -> Sequence[Mapping[str, Any]]:
        """The first rows in which nothing was known, for a guess."""
        return self._refused

    @property
    def unlearned(self) -> list[str]:
        """What --strict minds: everything that is not learned, save where rows are from."""
        return [*self.lost, *(tag for tag in self.tags if tag not in _PLACES)]

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Account:
        """The account that these `counts` are the JSON of."""
        lost, tags, taken = (Counter(counts[key]) for key in ("lost", "tags", "taken"))
        return cls(lost, tags, taken, list(counts["notes"]))

    def lines(self) -> Iterator[str]:
        """All of it, for people."""
        yield from self.notes
        for lead, counts in (
            ("left out", self.lost),
            ("kept as tags, not learned", self.tags),
            ("taken", self.taken),
        ):
            if counts:
                told = [
                    f"{kind} ({count(rows, 'row')}{_LIKE if _is_like_mask(kind, lead) else ''})"
                    for kind, rows in counts.most_common()
                ]
                yield f"{lead}: {listing(told, _SHOWN)}"

    @staticmethod
    def _add(counts: Counter[str], kinds: Iterable[str]) -> None:
        if len(counts) < _MOST_KINDS:
            counts.update(kinds)
        else:
            counts.update(kind if kind in counts else "other names" for kind in kinds)


def _is_like_mask(kind: str, lead: str) -> bool:
    return lead != "taken" and ":" not in kind and bool(_MASK.search(kind))


@dataclass(frozen=True)
class Reading:
    """How rows are read: what is forced, and whom to tell what is not learned of them.

    `columns`: which column is which field; the others become tags. `roles`: names of roles beside
    the usual ones. `encoding`: of text files. `system`: a system prompt for rows.
    """

    format: str | None = None
    columns: Mapping[str, str] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    kind: str | None = None
    encoding: str | None = None
    system: SystemPrompt | None = None
    # Spellings of "there is no input", in lower case; None: the usual ones.
    no_input: frozenset[str] | None = None
    told: Account = field(default_factory=Account, compare=False)

    @classmethod
    def of(cls, settings: Any) -> Reading:
        """As a record of settings says, which has some fields of these names, and `map`."""
        columns, kind = parse_map(settings.map) or None, getattr(settings, "kind", None)
        roles = parse_roles(settings.roles)
        system = getattr(settings, "system_prompt", None)
        texts = (getattr(settings, "no_input", None) or "").lower().split(",")
        spelled = frozenset(text.strip() for text in texts) - {""} or None
        return cls(settings.format, columns, roles, kind, settings.encoding, system, spelled)

    def facts(self) -> dict[str, Any]:
        """What the rows that come of it depend on."""
        facts = {
            "no_input": sorted(self.no_input or ()),
            "format": self.format,
            "columns": self.columns,
            "roles": self.roles,
        }
        system = self.system and vars(self.system)
        return {**facts, "kind": self.kind, "encoding": self.encoding, "system": system}


def parse_map(texts: Iterable[str]) -> dict[str, str]:
    """--map as field -> column: field=column, or column=field where only that can be meant; several
    between commas. Raises UsageError."""
    fields = TEXTS | LISTS
    columns: dict[str, str] = {}
    for text in texts:
        parts = text.split(",")
        # A column's name may hold a comma.
        many = len(parts) > 1 and all(fields & {*_halves(part)} for part in parts)
        for part in parts if many else [text]:
            name, column = _halves(part)
            if not name or not column:
                raise UsageError(f"--map {part!r} is not FIELD=COLUMN")
            if column in fields and name not in fields:
                name, column = column, name
            near = get_close_matches(name, sorted(fields), 1, _NEAR)
            if near and name not in fields:
                message = f"--map {part}: no field {name!r}"
                raise UsageError(message, hint=f"did you mean {near[0]}?")
            if name in columns:
                raise UsageError(f"--map names {name!r} twice")
            columns[name] = column
    return columns


def parse_roles(texts: Iterable[str]) -> dict[str, str]:
    """--roles as name -> role, several between commas. Raises UsageError."""
    roles = {}
    for part in (part for text in texts for part in text.split(",")):
        name, role = _halves(part.lower())
        if name in ROLES and role not in ROLES:
            name, role = role, name
        if not name or role not in ROLES:
            known = ", ".join(ROLES)
            raise UsageError(f"--roles {part!r} is not NAME=ROLE, ROLE being one of {known}")
        roles[name] = role
    return roles


def _halves(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()
