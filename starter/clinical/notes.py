"""Visit notes in ten layouts: the same facts, written as a tired clinic writes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from starter.clinical import lexicon as lex
from starter.clinical.record import Dice, Record


def _items(record: Record, field: str, dice: Dice) -> list[str]:
    """The field's facts as phrases, in the note's own words."""
    r = record
    match field:
        case "name":
            return [r.name]
        case "age_sex":
            short = r.sex[0].upper()
            forms = (
                f"{r.age}-year-old {r.sex}",
                f"{r.age}, {r.sex}",
                f"{r.sex}, {r.age} years old",
                f"{r.age} years, {r.sex}",
                f"{r.age} {short}",
            )
            return [dice.pick(forms)]
        case "date":
            return [r.date]
        case "clinician":
            return [r.clinician]
        case "complaint":
            return [r.complaint]
        case "diagnoses":
            return list(r.diagnoses)
        case "medications":
            return [" ".join(m) for m in r.medications]
        case "allergies":
            if not r.allergies:
                return [
                    dice.pick(("none known", "no known allergies", "NKDA", "denies any", "nil"))
                ]
            return [f"{substance} ({reaction})" for substance, reaction in r.allergies]
        case "vitals":
            return _vitals(r, dice)
        case "labs":
            return [" ".join(part for part in lab if part) for lab in r.labs]
        case "procedures":
            return list(r.procedures)
        case "follow_up":
            return [r.follow_up]
        case "triage":
            level, name, colour = lex.TRIAGE[r.triage - 1]
            forms = (f"level {level}", f"level {level} ({name})", colour, name, f"category {level}")
            return [dice.pick(forms)]
        case "smoking":
            return [r.smoking]
        case "family":
            return [f"{relative} with {condition}" for relative, condition in r.family]
        case "disposition":
            return [r.disposition]
    raise KeyError(field)


def _vitals(r: Record, dice: Dice) -> list[str]:
    style = dice.below(3)
    percent = dice.pick(("", "%"))
    if style == 0:
        return [
            f"BP {r.blood_pressure}",
            f"HR {r.heart_rate}",
            f"temp {r.temperature}",
            f"RR {r.respiratory_rate}",
            f"SpO2 {r.oxygen_saturation}{percent}",
        ]
    if style == 1:
        return [
            f"blood pressure {r.blood_pressure}",
            f"pulse {r.heart_rate}",
            f"temperature {r.temperature} C",
            f"respirations {r.respiratory_rate}",
            f"saturation {r.oxygen_saturation}{percent}",
        ]
    return [
        f"T {r.temperature}",
        f"P {r.heart_rate}",
        f"R {r.respiratory_rate}",
        f"BP {r.blood_pressure} mmHg",
        f"sats {r.oxygen_saturation}{percent}",
    ]


def listing(items: Sequence[str]) -> str:
    """Phrases as English: ``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


HEADINGS: dict[str, tuple[str, ...]] = {
    "name": ("Patient", "Name", "Patient name"),
    "age_sex": ("Age and sex", "Age/sex", "Demographics"),
    "date": ("Date", "Date of visit", "Seen on", "Visit date"),
    "clinician": ("Clinician", "Seen by", "Attending", "Physician", "Signed by"),
    "complaint": ("Chief complaint", "Presenting complaint", "Reason for visit", "Presents with"),
    "diagnoses": ("Diagnoses", "Diagnosis", "Assessment", "Impression", "Problem list"),
    "medications": ("Medications", "Current medications", "Meds", "Drugs", "Prescriptions"),
    "allergies": ("Allergies", "Known allergies", "Allergy", "Allergic to"),
    "vitals": ("Vitals", "Vital signs", "Observations", "Obs"),
    "labs": ("Labs", "Laboratory", "Blood results", "Bloods", "Lab values"),
    "procedures": ("Procedures", "Done today", "Procedures performed", "Interventions"),
    "follow_up": ("Follow-up", "Follow up", "Review", "Next appointment"),
    "triage": ("Triage", "Acuity", "Priority", "Triage level"),
    "smoking": ("Smoking", "Tobacco", "Social history", "Smoking status"),
    "family": ("Family history", "Family", "Relatives", "In the family"),
    "disposition": ("Disposition", "Discharged to", "Outcome", "Destination"),
}
FIELDS = tuple(HEADINGS)

_ABBREVIATIONS = {
    "name": "Pt",
    "complaint": "CC",
    "diagnoses": "Dx",
    "medications": "Rx",
    "allergies": "All",
    "family": "FHx",
    "smoking": "SHx",
    "follow_up": "F/u",
    "procedures": "Proc",
    "disposition": "Dispo",
}

_SENTENCES: dict[str, tuple[str, ...]] = {
    "name": ("The patient is {x}.", "This note is about {x}.", "We saw {x}."),
    "age_sex": ("Age and sex: {x}.", "The patient is a {x}."),
    "date": ("The visit was on {x}.", "Seen on {x}.", "Date of this visit: {x}."),
    "clinician": ("Seen by {x}.", "The patient was under the care of {x}.", "Signed by {x}."),
    "complaint": ("{P} came in with {x}.", "{P} presented with {x}.", "{P} complains of {x}."),
    "diagnoses": ("We diagnosed {x}.", "The assessment is {x}.", "{P} has {x}."),
    "medications": ("{P} takes {x}.", "Current medications are {x}.", "{P} is on {x}."),
    "allergies": ("Allergies: {x}.", "Known allergies are {x}.", "As to allergies, {x}."),
    "vitals": ("On arrival {x}.", "Observations were {x}.", "Vital signs: {x}."),
    "labs": ("Blood tests showed {x}.", "The laboratory reported {x}.", "Labs: {x}."),
    "procedures": ("{P} had {x}.", "We performed {x}.", "Procedures today were {x}."),
    "follow_up": ("Follow-up is with {x}.", "{P} will be reviewed at {x}.", "Next: {x}."),
    "triage": ("Triage: {x}.", "{P} was triaged as {x}.", "The triage nurse wrote {x}."),
    "smoking": ("Smoking: {x}.", "As to tobacco, {x}.", "Smoking status is {x}."),
    "family": ("The family history is {x}.", "Family: {x}.", "{P} reports {x}."),
    "disposition": ("Disposition: {x}.", "Outcome of the visit: {x}.", "{P} went: {x}."),
}


@dataclass(frozen=True, slots=True)
class _Section:
    field: str
    heading: str
    items: list[str]

    def line(self, dice: Dice) -> str:
        return dice.pick((", ", ", ", "; ")).join(self.items)


def _colon(sections: list[_Section], r: Record, dice: Dice) -> str:
    return "\n".join(f"{s.heading}: {s.line(dice)}" for s in sections)


def _equals(sections: list[_Section], r: Record, dice: Dice) -> str:
    sign = dice.pick((" =", " -", " :", " |"))
    return "\n".join(f"{s.heading}{sign} {s.line(dice)}" for s in sections)


def _capitals(sections: list[_Section], r: Record, dice: Dice) -> str:
    end = dice.pick((": ", "\n  "))
    return "\n".join(f"{s.heading.upper()}{end}{s.line(dice)}" for s in sections)


def _bullets(sections: list[_Section], r: Record, dice: Dice) -> str:
    mark = dice.pick(("-", "*", "•"))
    return "\n".join(f"{mark} {s.heading}: {s.line(dice)}" for s in sections)


def _block(sections: list[_Section], r: Record, dice: Dice) -> str:
    mark = dice.pick(("- ", "- ", "  ", "* "))
    title = dice.pick(("", "## ", "", "# "))
    end = ":" if not title else ""
    gap = dice.pick(("\n", "\n\n"))
    return gap.join(
        f"{title}{s.heading}{end}\n" + "\n".join(mark + item for item in s.items) for s in sections
    )


def _table(sections: list[_Section], r: Record, dice: Dice) -> str:
    head = dice.pick(("| item | entry |\n|---|---|\n", ""))
    return head + "\n".join(f"| {s.heading} | {s.line(dice)} |" for s in sections)


def _terse(sections: list[_Section], r: Record, dice: Dice) -> str:
    joint = dice.pick((" // ", ". ", " | "))
    return joint.join(f"{_ABBREVIATIONS.get(s.field, s.heading)}: {s.line(dice)}" for s in sections)


def _prose(sections: list[_Section], r: Record, dice: Dice) -> str:
    gap = dice.pick((" ", " ", "\n"))
    return gap.join(_sentence(s, r, dice) for s in sections)


def _sentence(s: _Section, r: Record, dice: Dice) -> str:
    text = dice.pick(_SENTENCES[s.field]).format(x=listing(s.items), P=r.pronoun)
    if s.field == "name":
        return text
    return text.replace("patient", dice.pick(("patient", "patient", r.name)), 1)


def _letter(sections: list[_Section], r: Record, dice: Dice) -> str:
    opening = dice.pick(("Dear colleague,", "To whom it may concern,", "Discharge letter"))
    body = _prose(sections, r, dice)
    return f"{opening}\n\n{body}\n\n{dice.pick(('With regards', 'End of letter'))}"


def _mixed(sections: list[_Section], r: Record, dice: Dice) -> str:
    cut = dice.between(1, max(1, len(sections) - 1))
    return _prose(sections[:cut], r, dice) + "\n\n" + _colon(sections[cut:], r, dice)


_LAYOUTS: tuple[Callable[[list[_Section], Record, Dice], str], ...] = (
    _colon,
    _colon,
    _block,
    _block,
    _bullets,
    _capitals,
    _equals,
    _table,
    _terse,
    _prose,
    _prose,
    _letter,
    _mixed,
)


def write_note(
    record: Record, needed: Collection[str], dice: Dice, others: tuple[int, int] = (3, 7)
) -> str:
    """A note that holds the needed fields and some others, in a random layout.

    Field order follows a chart most of the time and is shuffled otherwise.
    """
    rest = [f for f in FIELDS if f not in needed]
    kept = set(needed) | set(dice.sample(rest, dice.between(*others)))
    order = [f for f in FIELDS if f in kept]
    if dice.chance(0.4):
        order = dice.sample(order, len(order))
    sections = [_Section(f, dice.pick(HEADINGS[f]), _items(record, f, dice)) for f in order]
    return dice.pick(_LAYOUTS)(sections, record, dice)
