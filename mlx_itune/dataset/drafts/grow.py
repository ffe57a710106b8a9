"""Drafts as a function of what a teacher said: made, filtered, scored, in the order of a seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from mlx_itune.dataset.drafts.calls import Call, Said
from mlx_itune.dataset.drafts.filters import Kept, doubt, found_in, refused, rouge_l, words
from mlx_itune.dataset.drafts.material import (
    Material,
    Texts,
    answer_fields,
    first_call,
    second_call,
)
from mlx_itune.dataset.drafts.recipe import Recipe, fill
from mlx_itune.dataset.drafts.records import Draft, conversation
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import canonical

# Calls go out together by so many at most, and no fewer than those.
_MOST_TOGETHER, _FEWEST_TOGETHER = 128, 8
# So many tries a draft, and it is given up.
_TRIES = 5

_Made = tuple[int, Material, Texts, Draft]
# Answers to calls, in their order; what was said before is not asked again.
Ask = Callable[[Sequence[Call]], list[Said]]
Grade = Callable[[Sequence[Draft], Sequence[Material]], list[float | None]]


@dataclass
class Growth:
    """What came of it. tried: drafts that the teacher was asked for; rejected: by reason."""

    drafts: list[Draft] = field(default_factory=list)
    tried: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    # Why it ended before there were enough.
    ended: str | None = None


@dataclass(frozen=True)
class Wanted:
    """How many drafts of which teacher (as a draft records it), with which dice. second: whether
    each is asked for twice."""

    count: int
    seed: int
    teacher: dict[str, Any]
    second: bool = True

    @property
    def of(self) -> str:
        """The teacher's name in a call."""
        return canonical(self.teacher).decode()


def grow(
    recipe: Recipe,
    materials: Iterable[Material],
    given: Sequence[str],
    wanted: Wanted,
    ask: Ask,
    *,
    grade: Grade | None = None,
) -> Iterator[Growth]:
    """What there is after each round, the last one the whole. given: texts that no draft repeats.
    The same answers make the same drafts, however often it was begun."""
    growth, kept, left = Growth(), Kept(given), iter(materials)
    while len(growth.drafts) < wanted.count:
        missing = wanted.count - len(growth.drafts)
        together = min(_MOST_TOGETHER, max(_FEWEST_TOGETHER, missing + missing // 4))
        together = min(together, _TRIES * wanted.count - growth.tried)
        batch = [*enumerate(islice(left, together), growth.tried)]
        if not batch:
            spent = growth.tried >= _TRIES * wanted.count
            growth.ended = f"{_TRIES} tries a draft" if spent else "no passage is left"
            break
        calls = [first_call(recipe, each, n, wanted.of, wanted.seed) for n, each in batch]
        made = list[_Made]()
        for (number, material), call, said in zip(batch, calls, ask(calls), strict=True):
            if len(growth.drafts) + len(made) == wanted.count:
                break
            growth.tried += 1
            draft, fields, reason = _draft(recipe, material, call, said, wanted, kept)
            if draft is None:
                growth.rejected[reason] += 1
            else:
                made.append((number, material, fields, draft))
        growth.drafts += _scored(recipe, made, wanted, ask, grade)
        yield growth
    yield growth


def _draft(
    recipe: Recipe, material: Material, call: Call, said: Said, wanted: Wanted, kept: Kept
) -> tuple[Draft | None, Texts, str]:
    """(the draft, what it says by name, why there is none)."""
    fields = answer_fields(recipe, recipe.held, said.text)
    if said.finish == "length":
        return None, {}, "cut off"
    if said.finish != "stop":
        return None, {}, said.finish
    if fields is None:
        return None, {}, "not in the form asked for"
    fields = {**material.fields, **fields}
    user, answer = fill(recipe.user, fields), fill(recipe.assistant, fields)
    new, passage = fill(recipe.distinct, fields), material.fields.get("passage", "")
    # A passage that is part of a row has no faults of a draft.
    asked = new if passage in user and passage else user
    if reason := refused(recipe, asked if new != passage else answer, answer):
        return None, fields, reason
    found = found_in(fill(recipe.found, fields), passage) if recipe.found and passage else None
    if found is not None and found < recipe.min_found:
        return None, fields, "not found in the passage"
    nearest = kept.nearest(new)
    if nearest > recipe.max_rouge:
        return None, fields, "near another row"
    messages = [{"role": "system", "content": material.system}] if material.system else []
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    name = f"d-{hashlib.sha256(canonical([call.key, messages])).hexdigest()[:12]}"
    try:
        conversation(messages, name)
    except DataError as error:
        return None, fields, error.message
    kept.add(new)
    draft = Draft(
        id=name,
        messages=messages,
        passage=material.passage,
        source=material.source,
        recipe=recipe.name,
        teacher={**wanted.teacher, "temperature": recipe.temperature, "seed": wanted.seed},
        prompt=call.prompt,
        scores={"found": found, "agreement": None, "judge": None, "nearest": round(nearest, 4)},
    )
    return draft, fields, ""


def _scored(
    recipe: Recipe,
    made: Sequence[_Made],
    wanted: Wanted,
    ask: Ask,
    grade: Grade | None,
) -> Iterator[Draft]:
    drafts = [draft for *_, draft in made]
    agreed: list[float | None] = [None] * len(made)
    if wanted.second:
        again = [
            second_call(recipe, material, _with_row(fields, draft), n, wanted.of, wanted.seed)
            for n, material, fields, draft in made
        ]
        agreed = [
            _agreement(recipe, fields, draft, said)
            for (_, _, fields, draft), said in zip(made, ask(again), strict=True)
        ]
    grades: list[float | None] = [None] * len(made)
    if grade:
        grades = grade(drafts, [material for _, material, _, _ in made])
    for draft, agreement, mark in zip(drafts, agreed, grades, strict=True):
        scores = {**draft.scores, "agreement": agreement, "judge": mark}
        yield replace(draft, scores=scores, doubt=doubt(scores))


def _with_row(fields: Texts, draft: Draft) -> Texts:
    user, assistant = (message["content"] for message in draft.messages[-2:])
    return {**fields, "user": user, "assistant": assistant}


def _agreement(recipe: Recipe, fields: Texts, draft: Draft, said: Said) -> float | None:
    """How alike the second sample is: of labels whether it is the same, of texts ROUGE-L."""
    held = recipe.held_again
    second = answer_fields(recipe, held, said.text)
    if second is None:
        return 0.0
    if held and "enum" in held:
        wanted = fields["label"] if recipe.again_with == "answer" else recipe.again_with
        return float(second["label"] == wanted)
    text = second["answer"] if recipe.again else fill(recipe.assistant, {**fields, **second})
    return round(rouge_l(words(text), words(draft.messages[-1]["content"])), 4)
