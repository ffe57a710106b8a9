"""The starter's pretraining text: charts, handovers, registers, prose. No instruction, no response.

A document is a pure function of (seed, index). Most of it teaches two things that instruction
tuning needs and cannot teach in a few minutes: to copy, and to know that a heading, its synonyms
and a phrase such as "why the patient came in" name the same part of a chart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import tomllib

from starter.clinical import lexicon as lex
from starter.clinical.notes import FIELDS, HEADINGS, listing, write_note
from starter.clinical.record import Dice, Record, drug, new_record, person
from starter.clinical.tasks import TASKS, Task

CUES: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_name("cues.toml").read_text(encoding="utf-8")
)

_TITLES = (
    "Handover",
    "Summary sheet",
    "For the ward",
    "Extract",
    "Report",
    "Register entry",
    "Abstract",
    "Copied from the chart",
    "Notes for the next shift",
    "Checklist",
    "Letter",
    "From the chart",
)
_FRAMES = (
    "{C}: {a}",
    "{C}: {a}",
    "{C}: {a}",
    "{C}: {a}",
    "- {C}: {a}",
    "As for {c}: {a}",
    "{C} = {a}",
    "| {C} | {a} |",
    "The chart says about {c}: {a}",
    "Here is {c}: {a}",
    "The note gives {c}: {a}",
    "Regarding {c}: {a}",
    "{C} ({h}): {a}",
    "{h}, that is {c}: {a}",
    "To be found in the note, {c}: {a}",
    "Listed under {h}, {c}: {a}",
    "Needed was {c}: {a}",
)
_HEADING_OF = {
    "vitals_json": "vitals",
    "chief_complaint": "complaint",
    "visit_date": "date",
    "blood_pressure": "vitals",
    "family_history": "family",
    "coding": "diagnoses",
    "dose": "medications",
    "summary": "complaint",
}


def _article(cue: str, dice: Dice) -> str:
    first = cue.split()[0]
    clause = {"what", "who", "why", "when", "where", "which", "how", "whose", "every", "all", "by"}
    if first in clause | {"the", "at", "on", "in", "whether", "does", "is", "any"}:
        return cue
    return dice.pick((f"the {cue}", cue))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _entry(task: Task, record: Record, dice: Dice) -> tuple[str, dict[str, str]]:
    """An entry's text and the words of its slots; a line "dose of X" does not name X again."""
    text, slots = task.ask(record, dice)
    return text.removeprefix(f"{slots['drug']} ") if "drug" in slots else text, slots


def _restated(record: Record, dice: Dice, n: int) -> tuple[set[str], list[str]]:
    """``n`` entries of a chart said again in the words of a handover; also the fields they need."""
    needed: set[str] = set()
    out = []
    uniform = dice.pick(_FRAMES) if dice.chance(0.5) else None
    for task in dice.sample(TASKS, n):
        needed |= set(task.needs)
        answer, slots = _entry(task, record, dice)
        cue = dice.pick(CUES[task.name]).format(**slots)
        heading = dice.pick(HEADINGS[_HEADING_OF.get(task.name, task.needs[0])])
        if "codes" in slots:
            listed = dice.pick(("Codes: {}.", "Code list: {}", "Known codes: {}", "Codes {}"))
            out.append(listed.format(slots["codes"]))
        if "\n" in answer and dice.chance(0.3):
            answer = dice.pick((", ", "; ")).join(answer.removeprefix("- ").split("\n- "))
        frame = uniform or dice.pick(_FRAMES)
        line = frame.format(
            C=_capital(_article(cue, dice)), c=_article(cue, dice), h=heading, a=answer
        )
        if "\n" in answer and dice.chance(0.5):
            line = line.replace(": - ", ":\n- ", 1)
        out.append(line)
    return needed, out


def chart_and_handover(dice: Dice) -> str:
    """A note, then part of it again under other names."""
    record = new_record(dice)
    needed, lines = _restated(record, dice, dice.between(2, 7))
    note = write_note(record, needed, dice)
    lead = dice.pick(("Note:\n", "Note:\n", "", "Chart\n", "Visit note\n\n"))
    title = dice.pick(("", f"{dice.pick(_TITLES)}\n", f"## {dice.pick(_TITLES)}\n"))
    gap = dice.pick(("\n", "\n", "\n\n"))
    return f"{lead}{note}\n\n{title}{gap.join(lines)}"


def form(dice: Dice) -> str:
    """A form: several entries are named in a heading, then the note, then the filled-in entries.

    Never a single entry and never in the order of the heading, so that nothing here is a
    question with its answer.
    """
    record = new_record(dice)
    tasks = dice.sample(TASKS, dice.between(2, 5))
    opening, closing, needed = [], [], set[str]()
    frame = dice.pick(("{c}: {a}", "{c}: {a}", "{c} = {a}", "- {c}: {a}", "{c} - {a}"))
    for task in tasks:
        needed |= set(task.needs)
        answer, slots = _entry(task, record, dice)
        first, again = (dice.pick(CUES[task.name]).format(**slots) for _ in range(2))
        codes = f" (codes: {slots['codes']})" if "codes" in slots else ""
        opening.append(_article(first, dice) + codes)
        closing.append(frame.format(c=_capital(again), a=answer))
    lead = dice.pick(("Columns: {}", "Form with {}.", "This sheet holds {}.", "Entries: {}", "{}"))
    joint = dice.pick(("; ", ", ", "\n"))
    note = write_note(record, needed, dice)
    filled = dice.pick(("\n", "\n", "\n\n")).join(dice.sample(closing, len(closing)))
    return f"{lead.format(joint.join(opening))}\n\nNote:\n{note}\n\n{filled}"


def plain_chart(dice: Dice) -> str:
    """One or two notes, nothing after them."""
    notes = [write_note(new_record(dice), dice.sample(FIELDS, 4), dice) for _ in range(2)]
    return "\n\n".join(notes[: dice.between(1, 2)])


def glossary(dice: Dice) -> str:
    """Prose that ties wordings to headings: which words name the same entry of a chart."""
    lines = []
    for task in dice.sample(TASKS, dice.between(3, 6)):
        cues = [c.replace("{drug}", drug(dice)) for c in dice.sample(CUES[task.name], 3)]
        field = _HEADING_OF.get(task.name, task.needs[0])
        headings = dice.sample(HEADINGS[field], 2)
        form = dice.pick(
            (
                "{c0} is the same as {c1}, and stands under {h0}.",
                "Under {h0} or {h1} one reads {c0}; others say {c1} or {c2}.",
                "Whoever looks for {c0} or {c1} reads the line {h0}.",
                "{h0} and {h1} mean {c0}, or in other words {c1}.",
                "{c0}, {c1}, {c2}: all of them are found at {h0}.",
            )
        )
        names = {f"c{i}": c for i, c in enumerate(cues)} | {
            f"h{i}": h for i, h in enumerate(headings)
        }
        lines.append(_capital(form.format(**names)))
    if dice.chance(0.4):
        levels = dice.sample(lex.TRIAGE, 3)
        lines += [f"{_capital(colour)} is level {n} ({name})." for n, name, colour in levels]
    return dice.pick((" ", "\n")).join(lines)


_THINGS = (
    "chair lamp table ladder bucket rope hammer kettle basket mirror blanket candle shovel wheel "
    "saddle drum flute violin carpet bottle barrel lantern compass needle anchor bell plate spoon"
).split()
_COLOURS = "red blue green yellow white black brown grey purple orange pink silver".split()
_PLACES = "shelf cellar attic yard kitchen hall office stable garage shed loft pantry".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def register(dice: Dice) -> str:
    """A table of things or people, some of its lines looked up again afterwards."""
    kind = dice.below(4)
    if kind == 0:
        keys = dice.sample(_THINGS, dice.between(4, 9))
        values = [f"{dice.between(1, 99)} in the {dice.pick(_PLACES)}" for _ in keys]
        unit = "stock of"
    elif kind == 1:
        keys = [person(dice) for _ in range(dice.between(3, 7))]
        values = [
            f"{dice.pick(_DAYS)} at {dice.between(8, 18)}:{dice.pick(('00', '15', '30', '45'))}"
            for _ in keys
        ]
        unit = "time of"
    elif kind == 2:
        keys = [drug(dice) for _ in range(dice.between(4, 8))]
        values = [f"{dice.pick(lex.DOSES)} {dice.pick(lex.FREQUENCIES)}" for _ in keys]
        unit = "dose of"
    else:
        keys = [f"{dice.pick(_COLOURS)} {t}" for t in dice.sample(_THINGS, dice.between(4, 8))]
        values = [f"{dice.pick('ABCDEFGHKLMNRST')}{dice.between(10, 99)}" for _ in keys]
        unit = "code of"
    mark = dice.pick((": ", " = ", " - ", " | ", " "))
    line = dice.pick(("", "- ", "* ", "| "))
    body = dice.pick(("\n", "\n", ", ")).join(
        f"{line}{k}{mark}{v}" for k, v in zip(keys, values, strict=True)
    )
    pairs = dice.sample(list(zip(keys, values, strict=True)), dice.between(2, 4))
    frames = ("{u} {k}: {v}", "{k} has {v}", "{k}: {v}", "the {u} {k} is {v}", "{k} {v}")
    frame = dice.pick(frames)
    again = dice.pick(("\n", ". ")).join(frame.format(u=unit, k=k, v=v) for k, v in pairs)
    return f"{dice.pick(('List', 'Register', 'Inventory', 'Table', 'Plan'))}\n{body}\n\n{again}"


def story(dice: Dice) -> str:
    """Plain prose in which people and things come back."""
    who, other = person(dice), person(dice)
    things = dice.sample(_THINGS, 3)
    place, colour, day = dice.pick(_PLACES), dice.pick(_COLOURS), dice.pick(_DAYS)
    sentences = [
        f"On {day} {who} went to the {place} to look for a {colour} {things[0]}.",
        f"{other} had left a {things[1]} and a {things[2]} there.",
        f"The {things[1]} was old, but the {things[2]} was new.",
        f"When {other} came back, {who} was still holding the {colour} {things[0]}.",
        f'"I found the {things[0]} in the {place}," said {who}.',
        f"So {other} took the {listing(things[1:])} home, and {who} kept the {things[0]}.",
        f"It was {day} evening when they left the {place}.",
        f"Nobody asked {other} about the {things[2]} again.",
    ]
    start = dice.below(3)
    return " ".join(sentences[start : start + dice.between(3, 6)])


def record_as_json(dice: Dice) -> str:
    """A chart as JSON, the note before or after it."""
    record = new_record(dice)
    tasks = dice.sample([t for t in TASKS if t.name not in ("coding", "dose", "vitals_json")], 4)
    needed = {f for t in tasks for f in t.needs}
    fields = {
        t.name: t.ask(record, dice)[0].replace("\n- ", "; ").removeprefix("- ") for t in tasks
    }
    if dice.chance(0.4):
        vitals = next(t for t in TASKS if t.name == "vitals_json")
        needed.add("vitals")
        fields["vitals"] = json.loads(vitals.ask(record, dice)[0])
    note = write_note(record, needed, dice)
    return f"{note}\n\n{json.dumps(fields, ensure_ascii=False, indent=dice.pick((None, 1)))}"


DOCUMENTS: tuple[tuple[float, Callable[[Dice], str]], ...] = (
    (0.42, chart_and_handover),
    (0.26, form),
    (0.06, plain_chart),
    (0.06, glossary),
    (0.10, register),
    (0.05, story),
    (0.05, record_as_json),
)


def document(seed: int, index: int) -> str:
    """Document ``index`` of the corpus with this seed."""
    dice = Dice(f"pretraining/{seed}/{index}")
    x = dice.below(10_000) / 10_000 * sum(weight for weight, _ in DOCUMENTS)
    for weight, write in DOCUMENTS:
        x -= weight
        if x < 0:
            return write(dice)
    return DOCUMENTS[0][1](dice)


def documents(seed: int, n: int) -> Iterator[str]:
    """The first ``n`` documents."""
    return (document(seed, i) for i in range(n))
