"""Few-shot prompts: whose exemplars, how many, how long, and what is learned of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.templating.pattern import Pattern
from mlx_itune.dataset.templating.render import (
    Rendered,
    Renderer,
    Settings,
    conversation_of,
    finish,
)
from mlx_itune.dataset.templating.shots import ExemplarPool
from mlx_itune.dataset.templating.tasks import Task, Template
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer

TASK = Task(
    "qa",
    {"q": "q", "a": "a"},
    tuple(Template(n, Pattern(f"T{n} {{q}}"), Pattern(f"R{n} {{a}}")) for n in range(4)),
)
ROWS = [{"q": f"ask {n} end", "a": f"reply {n} end"} for n in range(60)]


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def rendered(
    rows: Sequence[dict[str, Any]],
    *,
    pool: Sequence[dict[str, Any]] = (),
    task: Task = TASK,
    **settings: Any,
) -> list[Rendered]:
    renderer = Renderer(task, Settings(**{"shot_budget_tokens": 10_000, **settings}))
    for row in pool or rows:
        renderer.pool.add(renderer.values(row))
    drafts = [draft for row in rows for draft in renderer.drafts(renderer.values(row))]
    return finish(drafts, renderer.settings.shot_budget_tokens, words)


def test_each_prompt_draws_its_number_of_exemplars() -> None:
    made = rendered(ROWS * 20, shots=(0, 1, 2, 5), draws=2)
    for count in (0, 1, 2, 5):
        share = sum(e.shots == count for e in made) / len(made)
        assert abs(share - 0.25) < 0.15
    assert {e.shots for e in made} == {0, 1, 2, 5}
    assert not any(e.is_dropped for e in made)


def test_the_layout_is_the_documented_one() -> None:
    for example in rendered(ROWS, shots=(2,)):
        *shots, query = example.prompt.split("\n\n\n")
        assert len(shots) == 2
        n = example.template
        for shot in shots:
            asked, told = shot.split("\n\n")
            assert asked.replace("ask", "reply")[3:] == told[3:]
            assert (asked[:3], told[:3]) == (f"T{n} ", f"R{n} ")
        assert query.startswith(f"T{n} ask")
        assert example.completion.startswith(f"R{n} reply")


def test_delimiters_and_prefixes_are_the_task_files() -> None:
    template = Template(0, Pattern("{q}"), Pattern("{a}"), input_prefix="Q: ", target_prefix="A: ")
    task = Task(
        "qa", {"q": "q", "a": "a"}, (template,), xy_delimiter="\n", example_separator="\n--\n"
    )
    (example,) = rendered(
        [{"q": "one?", "a": "1"}], pool=[{"q": "two?", "a": "2"}], task=task, shots=(1,)
    )
    assert example.prompt == "Q: two?\nA: 2\n--\nQ: one?\nA:"
    assert example.completion == "1"


def test_an_exemplar_is_never_the_query_however_it_is_spelled() -> None:
    twice = [*ROWS[:4], *({"q": r["q"].upper() + "  ", "a": r["a"]} for r in ROWS[:4])]
    for example in rendered(twice, shots=(100,)):
        *shots, query = example.prompt.split("\n\n\n")
        key = query[3:].strip().casefold()
        assert len(shots) == 3
        assert all(key not in shot.casefold() for shot in shots)


def test_an_exemplar_never_reads_like_the_query() -> None:
    fields = {"q": "q", "a": "a", "why": "why"}
    templates = (
        Template(0, Pattern("{q}"), Pattern("{a}")),
        Template(1, Pattern("{q}"), Pattern("{why}")),
    )
    rows = [{"q": "same", "a": "yes", "why": str(n)} for n in range(30)]
    for example in rendered(rows, task=Task("t", fields, templates), shots=(5,)):
        if example.template == 0:
            assert example.is_dropped
        else:
            assert f"same\n\n{example.completion}" not in example.prompt


def test_exemplars_go_until_the_prompt_fits_its_budget() -> None:
    chance = random.Random(4)
    rows = [{"q": "q " * chance.randint(1, 40), "a": f"{n}"} for n in range(200)]
    made = rendered(rows, shots=(5,), shot_budget_tokens=60)
    assert {e.shots for e in made} >= {0, 1, 2, 3}
    for example in made:
        if not example.is_dropped:
            assert words([example.prompt])[0] <= 60
    free = rendered(rows, shots=(5,))
    for tight, loose in zip(made, free, strict=True):
        if words([loose.prompt])[0] <= 60:
            assert tight == loose


def test_a_prompt_without_a_single_exemplar_is_dropped_and_zero_shot_is_not() -> None:
    made = rendered(ROWS[:1], shots=(0, 3), draws=20)
    assert {e.is_dropped for e in made if e.shots_asked == 3} == {True}
    assert {e.is_dropped for e in made if e.shots_asked == 0} == {False}


def test_exemplars_depend_on_the_rows_and_not_on_their_order() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    made = rendered(ROWS, shots=(3,))
    again = rendered(ROWS, pool=shuffled, shots=(3,))
    assert made == again
    assert made != rendered(ROWS, shots=(3,), seed=9)


def test_every_row_of_the_pool_is_used() -> None:
    prompts = "\n".join(e.prompt for e in rendered(ROWS, shots=(5,), draws=8))
    assert all(prompts.count(f"reply {n} end") > 5 for n in range(60))


def test_the_pool_is_bounded_and_keeps_the_same_rows_in_any_order() -> None:
    renderer = Renderer(TASK, Settings())
    chance = random.Random(8)
    values = [
        renderer.values({"q": f"{n} " + "x" * chance.randint(0, 90), "a": "y"}) for n in range(500)
    ]
    kept = []
    for _ in range(4):
        pool = ExemplarPool(0, "t", 1920, max_rows=100, max_chars=3_000)
        for one in chance.sample(values, len(values)):
            pool.add(one)
        kept.append(set(pool.candidates(renderer.values({"q": "?", "a": "?"}), 1)))
        assert sum(one.size() for one in kept[-1]) <= 3_000
        assert 20 < len(kept[-1]) <= 100
    assert all(one == kept[0] for one in kept)


def test_rows_of_other_splits_leave_the_pool() -> None:
    renderer = Renderer(TASK, Settings(shots=(50,)))
    for row in ROWS:
        renderer.pool.add(renderer.values(row))
    for row in ROWS[10:]:
        renderer.pool.remove(renderer.values({**row, "q": row["q"].title()}))
    (draft,) = renderer.drafts(renderer.values(ROWS[30]))
    prompt = draft.finished().prompt
    assert draft.finished().shots == 10
    assert [n for n in range(60) if f"ask {n} end" in prompt] == [*range(10), 30]


@pytest.mark.parametrize("learn", ["all", "last"])
def test_nothing_of_an_exemplar_is_learned(tiny_model_dir: Path, learn: Any) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    made = rendered(ROWS, shots=(1, 2, 5))
    rows = [conversation_of(e, f"f:{n}", "f") for n, e in enumerate(made)]
    examples = prepare(rows, tokenizer, max_length_tokens=4_096, learn=learn).examples
    assert len(examples) == len(made)
    for example, one in zip(examples, made, strict=True):
        learned = tokenizer.decode(example.input_ids[example.weights > 0])
        assert learned == f"{one.completion}<|end|>"
