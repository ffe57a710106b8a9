"""What drafts are made of, in an order that a seed gives: passages, or a few rows as examples."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_itune.dataset.checking.task import task_of
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.drafts.calls import Call
from mlx_itune.dataset.drafts.recipe import Recipe, fill
from mlx_itune.dataset.ingest.passages import Passage
from mlx_itune.dataset.schema import json_of
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.json_files import read_bytes, to_record

PASSAGES = "passages.jsonl"
# Of other labels, so that a model that names one sees what it chooses from.
_LABEL_SHOTS = 12
Texts = dict[str, str]


@dataclass(frozen=True)
class Material:
    """Of one draft. shots: (what was asked, what was said) before; again: those before the second
    sample; system: of the row that comes of it."""

    fields: Texts
    passage: str | None = None
    source: str | None = None
    shots: tuple[tuple[str, str], ...] = ()
    again: tuple[tuple[str, str], ...] = ()
    system: str = ""


@dataclass(frozen=True)
class Example:
    """A row of the user's own as far as a recipe needs it."""

    user: str
    assistant: str
    system: str = ""
    origin: str = ""


def read_passages(folder: Path) -> list[Passage]:
    """The passages of `data ingest`. Raises DataError with file and line, StorageError."""
    path = folder / PASSAGES
    lines = read_bytes(path, error=DataError, limit_bytes=1 << 30).split(b"\n")
    found = [
        to_record(line, Passage, where=f"{path}:{number}", error=DataError)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise DataError("holds no passages", where=str(path))
    return found


def examples_of(rows: Sequence[Conversation]) -> list[Example]:
    """Rows of one question and one answer. Raises DataError where there is none."""
    found = []
    for row in rows:
        system = row.turns[0].content if row.turns[0].role == "system" else ""
        said = row.turns[1:] if system else row.turns
        if [turn.role for turn in said] == ["user", "assistant"] and said[1].content.strip():
            found.append(Example(said[0].content, said[1].content, system, row.origin))
    if not found:
        raise DataError("no row is one question with one answer", hint="others are no examples")
    return found


def labels_of(rows: Sequence[Conversation]) -> tuple[str, ...]:
    """The labels that rows answer with; none where they answer with something else."""
    task = task_of(rows)
    return tuple(sorted(label for label, _ in task.labels)) if task.kind == "labels" else ()


def of_passages(passages: Sequence[Passage], recipe: Recipe, seed: int) -> Iterator[Material]:
    """Each passage in an order of the seed, and again with another style; once where nothing but
    the passage makes a draft another one."""
    dice = random.Random(seed)
    styles = recipe.styles or ("",)
    rounds = itertools.count() if recipe.distinct != "{passage}" else range(1)
    for turn in rounds:
        for n in dice.sample(range(len(passages)), len(passages)):
            passage = passages[n]
            fields = {"passage": passage.text, "heading": passage.heading or ""}
            fields |= {
                "style": styles[(n + turn) % len(styles)],
                "labels": ", ".join(recipe.labels),
            }
            system = fill(recipe.row_system, fields)
            yield Material(fields, passage.id, passage.source, system=system)


def of_examples(examples: Sequence[Example], recipe: Recipe, seed: int) -> Iterator[Material]:
    """Examples drawn for each draft; where a recipe wants labels, one label after the other, with
    examples of that label. Raises UsageError where there are none."""
    dice = random.Random(seed)
    labels = recipe.labels if "{label}" in recipe.assistant else ("",)
    if not labels:
        hint = "recipe instructions takes rows with any answers"
        raise UsageError("the rows have no labels, each of them given to several rows", hint=hint)
    of = {
        label: [e for e in examples if not label or e.assistant.strip() == label]
        for label in labels
    }
    styles = recipe.styles or ("",)
    again = {label: _label_shots(of, label, seed) if label else () for label in labels}
    for n in itertools.count():
        label, pool = labels[n % len(labels)], of[labels[n % len(labels)]]
        if not pool:
            raise UsageError(f"no row has the label {label!r}")
        # In their own order: prompts that begin the same are computed once.
        drawn = [
            pool[n] for n in sorted(dice.sample(range(len(pool)), min(recipe.shots, len(pool))))
        ]
        fields = {
            "label": label,
            "labels": ", ".join(recipe.labels),
            "style": styles[n % len(styles)],
        }
        asked = fill(recipe.prompt, fields)
        yield Material(
            fields,
            source=drawn[0].origin,
            shots=tuple((asked, _as_answer(recipe, each)) for each in drawn),
            again=again[label],
            system=fill(recipe.row_system, fields) or drawn[0].system,
        )


def _as_answer(recipe: Recipe, example: Example) -> str:
    """What a teacher would have said for an example to come of it."""
    names = recipe.schema.get("properties", {})
    if not names:
        return example.user if "{answer}" in recipe.user else example.assistant
    said = {n: example.user if f"{{{n}}}" in recipe.user else example.assistant for n in names}
    return json.dumps(said, ensure_ascii=False)


def _label_shots(
    of: dict[str, list[Example]], label: str, seed: int
) -> tuple[tuple[str, str], ...]:
    """One example of each label; of many labels of some, this one among them."""
    dice = random.Random(seed)
    names = dice.sample(sorted(of), len(of))
    kept = {label, *names[: _LABEL_SHOTS - 1]}
    texts = {name: dice.choice(of[name]).user for name in names if of[name]}
    return tuple((texts[name], json.dumps(name)) for name in names if name in kept & texts.keys())


def first_call(recipe: Recipe, material: Material, number: int, of: str, seed: int) -> Call:
    """What a teacher is asked for the draft of a number."""
    asked = [(fill(recipe.system, material.fields), fill(recipe.prompt, material.fields))]
    return _call(
        recipe, asked[0], material.shots, (recipe.temperature, recipe.held), (number, of, seed)
    )


def second_call(
    recipe: Recipe, material: Material, fields: Texts, number: int, of: str, seed: int
) -> Call:
    """What it is asked to say of a draft a second time: greedy where the recipe has words for it,
    else drawn again."""
    if not recipe.again:
        first = first_call(recipe, material, number, of, seed)
        return replace(first, seed=~seed)
    system = material.system if material.again else fill(recipe.system, fields)
    asked = system, fill(recipe.again, fields)
    return _call(recipe, asked, material.again, (0.0, recipe.held_again), (number, of, seed))


def _call(
    recipe: Recipe,
    asked: tuple[str, str],
    shots: Sequence[tuple[str, str]],
    how: tuple[float, dict[str, Any] | None],
    which: tuple[int, str, int],
) -> Call:
    system, prompt = asked
    before = [
        (role, text)
        for shot in shots
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ]
    messages = [*([("system", system)] if system else []), *before, ("user", prompt)]
    number, of, seed = which
    return Call(tuple(messages), of, number, seed, how[0], recipe.top_p, recipe.max_tokens, how[1])


def answer_fields(recipe: Recipe, schema: dict[str, Any] | None, text: str) -> Texts | None:
    """What a teacher's answer says, by name; None where it has not the form that was asked for."""
    text = text.strip()
    if schema is None:
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        return {"answer": text[1:-1].strip() if quoted else text}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if "enum" in schema:
        return {"label": value, "answer": value} if value in schema["enum"] else None
    if json_of(text) is None:
        return None
    fields = value if isinstance(value, dict) else {}
    shown = {
        name: each if isinstance(each, str) else json.dumps(each) for name, each in fields.items()
    }
    return {**shown, "json": json.dumps(value, ensure_ascii=False)}
