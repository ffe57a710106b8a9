"""One invented visit: the facts that notes are written from and answers are read from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from starter.clinical import lexicon as lex

T = TypeVar("T")


class Dice:
    """Random choices that stay the same in every Python version.

    Only ``random.Random.random`` is promised to be stable, so everything is built on it.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """An integer in ``[0, n)``."""
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in ``[low, high]``."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """``n`` different items, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(min(n, len(rest)))]

    def chance(self, p: float) -> bool:
        """True with probability ``p``."""
        return self._random() < p


@dataclass(frozen=True, slots=True)
class Record:
    """The facts of one visit; lists are in the order in which the note gives them."""

    name: str
    sex: str
    age: int
    date: str
    clinician: str
    complaint: str
    diagnoses: tuple[str, ...]
    medications: tuple[tuple[str, str, str], ...]  # drug, dose, frequency
    allergies: tuple[tuple[str, str], ...]  # substance, reaction
    blood_pressure: str
    heart_rate: int
    temperature: str
    respiratory_rate: int
    oxygen_saturation: int
    labs: tuple[tuple[str, str, str], ...]  # name, value, unit
    procedures: tuple[str, ...]
    follow_up: str
    triage: int
    smokes: bool
    smoking: str
    family: tuple[tuple[str, str], ...]  # relative, condition
    disposition: str

    @property
    def pronoun(self) -> str:
        """ "He" or "She"."""
        return "She" if self.sex == "female" else "He"


_CONDITIONS = lex.phrases(lex.CONDITIONS)
_COMPLAINTS = lex.phrases(lex.COMPLAINTS)
_SPANS = lex.phrases(lex.SPANS)
_ALLERGENS = lex.phrases(lex.ALLERGENS)
_REACTIONS = lex.phrases(lex.REACTIONS)
_PROCEDURES = lex.phrases(lex.PROCEDURES)
_CLINICS = lex.phrases(lex.CLINICS)
_WHENS = lex.phrases(lex.WHENS)
_DISPOSITIONS = lex.phrases(lex.DISPOSITIONS)
_RELATIVES = lex.phrases(lex.RELATIVES)
_SMOKER = lex.phrases(lex.SMOKER)
_NON_SMOKER = lex.phrases(lex.NON_SMOKER)


def person(dice: Dice) -> str:
    """A first name and an invented surname."""
    surname = dice.pick(lex.SURNAME_START.split()) + dice.pick(lex.SURNAME_END.split())
    return f"{dice.pick(lex.FIRST.split())} {surname}"


def drug(dice: Dice) -> str:
    """A drug's name; one in four is made of syllables and exists nowhere."""
    if dice.chance(0.25):
        parts = (lex.DRUG_START, lex.DRUG_MIDDLE, lex.DRUG_END)
        return "".join(dice.pick(part.split()) for part in parts)
    return dice.pick(lex.DRUGS)


def condition(dice: Dice) -> str:
    """A diagnosis."""
    return dice.pick(_CONDITIONS)


def conditions(dice: Dice, n: int) -> list[str]:
    """``n`` different diagnoses."""
    return dice.sample(_CONDITIONS, n)


def _lab(dice: Dice, row: tuple[str, int, int, int, str]) -> tuple[str, str, str]:
    name, low, high, decimals, unit = row
    value = dice.between(low, high)
    return name, f"{value / 10:.1f}" if decimals else str(value), unit


def new_record(dice: Dice) -> Record:
    """Draw a visit."""
    drugs = {drug(dice): None for _ in range(dice.between(1, 4))}
    smokes = dice.chance(0.5)
    month = dice.pick(lex.MONTHS.split())
    allergens = dice.sample(_ALLERGENS, dice.pick((0, 1, 1, 1, 2, 2)))
    return Record(
        name=person(dice),
        sex=dice.pick(("female", "male")),
        age=dice.between(18, 94),
        date=f"{dice.between(1, 28)} {month} {dice.between(2018, 2031)}",
        clinician=f"Dr. {person(dice)}",
        complaint=f"{dice.pick(_COMPLAINTS)} {dice.pick(_SPANS)}",
        diagnoses=tuple(conditions(dice, dice.pick((1, 1, 2, 2, 3)))),
        medications=tuple((d, dice.pick(lex.DOSES), dice.pick(lex.FREQUENCIES)) for d in drugs),
        allergies=tuple((a, dice.pick(_REACTIONS)) for a in allergens),
        blood_pressure=f"{dice.between(92, 188)}/{dice.between(51, 109)}",
        heart_rate=dice.between(48, 134),
        temperature=f"{dice.between(355, 398) / 10:.1f}",
        respiratory_rate=dice.between(11, 29),
        oxygen_saturation=dice.between(86, 100),
        labs=tuple(_lab(dice, row) for row in dice.sample(lex.LABS, dice.between(1, 4))),
        procedures=tuple(dice.sample(_PROCEDURES, dice.pick((1, 1, 2, 2, 3)))),
        follow_up=f"{dice.pick(_CLINICS)} {dice.pick(_WHENS)}",
        triage=dice.between(1, 5),
        smokes=smokes,
        smoking=dice.pick(_SMOKER if smokes else _NON_SMOKER),
        family=tuple(
            (r, condition(dice)) for r in dice.sample(_RELATIVES, dice.pick((1, 1, 1, 2)))
        ),
        disposition=dice.pick(_DISPOSITIONS),
    )
