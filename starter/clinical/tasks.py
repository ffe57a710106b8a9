"""The twenty tasks: which fields a note must hold, and the one right answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from starter.clinical import lexicon as lex
from starter.clinical.record import Dice, Record, conditions


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question.

    ``slots`` draws what the wording names besides the note (a code list, a drug) together with
    the answer; tasks without such a slot leave the mapping empty.
    """

    name: str
    needs: tuple[str, ...]
    ask: Callable[[Record, Dice], tuple[str, dict[str, str]]]


def _lines(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _plain(answer: Callable[[Record], str]) -> Callable[[Record, Dice], tuple[str, dict[str, str]]]:
    return lambda record, dice: (answer(record), {})


def medications(r: Record) -> str:
    """One line a drug: name, dose, frequency."""
    return _lines([" ".join(m) for m in r.medications])


def allergies(r: Record) -> str:
    """Substances with the reaction in brackets, or ``none known``."""
    return ", ".join(f"{a} ({b})" for a, b in r.allergies) or "none known"


def vitals_json(r: Record) -> str:
    """The five vital signs as a JSON object with fixed keys."""
    signs: dict[str, object] = {
        "bp": r.blood_pressure,
        "hr": r.heart_rate,
        "temp": float(r.temperature),
        "rr": r.respiratory_rate,
        "spo2": r.oxygen_saturation,
    }
    return json.dumps(signs)


def triage(r: Record) -> str:
    """Level and name, whatever the note calls it."""
    level, name, _ = lex.TRIAGE[r.triage - 1]
    return f"level {level} ({name})"


def labs(r: Record) -> str:
    """One line a result: name, value, unit."""
    return _lines([" ".join(part for part in lab if part) for lab in r.labs])


def family(r: Record) -> str:
    """Relatives with their conditions."""
    return ", ".join(f"{relative} with {condition}" for relative, condition in r.family)


def summary(r: Record) -> str:
    """Age, sex, complaint and first diagnosis in one line."""
    return f"{r.age}-year-old {r.sex} with {r.complaint}, diagnosed with {r.diagnoses[0]}"


def _coding(r: Record, dice: Dice) -> tuple[str, dict[str, str]]:
    right = r.diagnoses[0]
    others = [c for c in conditions(dice, 4) if c not in r.diagnoses][:3]
    choices = dice.sample([right, *others], len(others) + 1)
    codes = {c: f"{dice.pick('ABCDEFGHKLMNRST')}{dice.between(10, 99)}" for c in choices}
    listed = ", ".join(f"{c} {code}" for c, code in codes.items())
    return f"{right} {codes[right]}", {"codes": listed}


def _dose(r: Record, dice: Dice) -> tuple[str, dict[str, str]]:
    drug, amount, frequency = dice.pick(r.medications)
    return f"{drug} {amount} {frequency}", {"drug": drug}


TASKS = (
    Task("medications", ("medications",), _plain(medications)),
    Task("diagnoses", ("diagnoses",), _plain(lambda r: _lines(list(r.diagnoses)))),
    Task("vitals_json", ("vitals",), _plain(vitals_json)),
    Task("allergies", ("allergies",), _plain(allergies)),
    Task("chief_complaint", ("complaint",), _plain(lambda r: r.complaint)),
    Task("follow_up", ("follow_up",), _plain(lambda r: r.follow_up)),
    Task("triage", ("triage",), _plain(triage)),
    Task("smoking", ("smoking",), _plain(lambda r: "yes" if r.smokes else "no")),
    Task("age_sex", ("age_sex",), _plain(lambda r: f"{r.age}, {r.sex}")),
    Task("procedures", ("procedures",), _plain(lambda r: _lines(list(r.procedures)))),
    Task("labs", ("labs",), _plain(labs)),
    Task("coding", ("diagnoses",), _coding),
    Task("summary", ("age_sex", "complaint", "diagnoses"), _plain(summary)),
    Task("name", ("name",), _plain(lambda r: r.name)),
    Task("visit_date", ("date",), _plain(lambda r: r.date)),
    Task("clinician", ("clinician",), _plain(lambda r: r.clinician)),
    Task("blood_pressure", ("vitals",), _plain(lambda r: r.blood_pressure)),
    Task("family_history", ("family",), _plain(family)),
    Task("disposition", ("disposition",), _plain(lambda r: r.disposition)),
    Task("dose", ("medications",), _dose),
)
