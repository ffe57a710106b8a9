"""Task files and the choice of templates: every fault has a place, every choice a reason."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.templating.pattern import Pattern, PatternError
from mlx_itune.dataset.templating.render import Rendered, Renderer, Settings
from mlx_itune.dataset.templating.task_file import load_tasks
from mlx_itune.dataset.templating.tasks import Task, TaskError, Template
from mlx_itune.kit.errors import DataError, UsageError

TEN = tuple(Template(n, Pattern(f"{n}. {{q}}"), Pattern("{a}")) for n in range(10))
TEN_AND_TWO = (
    *TEN,
    Template(10, Pattern("Ask for: {a}"), Pattern("{q}"), kind="inverse"),
    Template(11, Pattern("What gives {a}?"), Pattern("{q}"), kind="inverse", weight=3),
)
FIELDS = {"q": "q", "a": "a"}

Write = Callable[[str], Path]


def examples(renderer: Renderer, row: dict[str, Any]) -> list[Rendered]:
    return [draft.finished() for draft in renderer.drafts(renderer.values(row))]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "tasks.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_shipped_task_files_load() -> None:
    folder = Path(__file__).parents[2] / "data" / "templates"
    tasks = [task for path in sorted(folder.glob("*.toml")) for task in load_tasks(path)]
    assert {"grade-school-math", "yes-no"} <= {task.name for task in tasks}
    for task in tasks:
        assert sum(template.kind == "normal" for template in task.templates) >= 10


def test_a_pattern_inserts_values_verbatim() -> None:
    pattern = Pattern("{{literal}} 100% {q}{a} %s {q}")
    values = {"q": "{a} %d {{x}} {", "a": "\\1 {q}"}
    wanted = "{literal} 100% {a} %d {{x}} {\\1 {q} %s {a} %d {{x}} {"
    assert pattern.render(values) == wanted
    assert pattern.fields == ("q", "a")
    assert Pattern.of_pieces(pattern.pieces).text == pattern.text


@pytest.mark.parametrize("text", ["{", "a } b", "{q", "q}", "{{q}", "{}", "{a{b}}", "a\x01b"])
def test_a_pattern_refuses_what_it_cannot_mean(text: str) -> None:
    with pytest.raises(PatternError):
        Pattern(text)


def test_a_task_file_may_name_columns_and_literal_braces(write: Write) -> None:
    path = write(
        "[[task]]\nname = 'x'\nfields = {q = 'deep.question', a = 'Final answer'}\nanswer = 'a'\n"
        "[[task.template]]\ninput = 'JSON {{\"q\": \"{q}\"}}'\ntarget = '{answer}'\n"
    )
    (task,) = load_tasks(path)
    row = {"deep": {"question": "why?"}, "Final answer": 7, "unused": None}
    (example,) = examples(Renderer(task, Settings()), row)
    assert (example.prompt, example.completion) == ('JSON {"q": "why?"}', "7")


HEAD = '[[task]]\nname = "rte"\nfields = ["premise", "label"]\nanswer = "label"\n'
GOOD = '[[task.template]]\ninput = "{premise}"\ntarget = "{answer}"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + GOOD + GOOD.replace("{premise}", "{premis}"), ":8: task 'rte', template 1: the inp"
         "ut uses {premis}, which is not a field (did you mean premise?)"),
        (HEAD + GOOD.replace("{premise}", "{premise} {option_}"), "template 0: the input uses "
         "{option_}, an unknown special field (did you mean options_?)"),
        (HEAD + GOOD.replace("{premise}", "{premise} {options_}"), "the task has no options"),
        (HEAD + GOOD.replace("{premise}", "{ premise }"), "did you mean premise?"),
        (HEAD + GOOD.replace("{premise}", "{premise"), "template 0: the input has a lone '{'"),
        (HEAD.replace('"label"]', '"label", "extra"]') + GOOD, ":1: task 'rte': field 'extra' is "
         "declared and no template (0-0) uses it"),
        (HEAD + GOOD + 'wieght = 2\n', "template 0: unknown key 'wieght' (did you mean weight?)"),
        (HEAD.replace("name", "nmae") + GOOD, "has no name"),
        (HEAD.replace('answer = "label"', 'answer = "lable"') + GOOD, "did you mean label?"),
        (HEAD + 'options = "chioces"\n' + GOOD, "options names 'chioces'"),
        (HEAD + 'options = ["a", "a"]\n' + GOOD, "lists 'a' twice"),
        (HEAD + GOOD + 'kind = "inverted"\n', "kind must be one of normal, inverse"),
        (HEAD + GOOD + "weight = nan\n", "weight nan"),
        (HEAD + GOOD + "weight = -1\n", "weight -1"),
        (HEAD + '[[task.template]]\ninput = ""\ntarget = "{answer}{premise}"\n', "input is empty"),
        (HEAD + '[[task.template]]\ntarget = "{answer}{premise}"\n', "template 0: has no input"),
        (HEAD + GOOD + '[[task.template]]\nkind = "inverse"\ninput = "{premise}: {label}"\n'
         'target = "{answer}"\n', ":8: task 'rte', template 1: is inverse and has {label} in its "
         "input and in its target"),
        (HEAD, "has no [[task.template]]"),
        ("name = 'x'\n", "has no [[task]]"),
        ("[[task]\n", "not a TOML file"),
        (HEAD + GOOD + HEAD + GOOD, "task 'rte' is defined twice"),
    ],
)  # fmt: skip
def test_a_broken_task_file_is_refused_with_its_place(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(DataError) as refused:
        load_tasks(path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_every_fault_of_a_task_file_is_told_at_once(write: Write) -> None:
    bad = GOOD.replace("{premise}", "{x} {premise}") + GOOD.replace("{answer}", "{y}")
    with pytest.raises(DataError) as refused:
        load_tasks(write(HEAD + bad))
    assert "{x}" in str(refused.value)
    assert "line 8: task 'rte', template 1: the target uses {y}" in str(refused.value)


def test_a_task_made_in_code_obeys_the_same_rules() -> None:
    with pytest.raises(TaskError, match=r"task 't', template 0: the input uses \{z\}"):
        Task("t", {"q": "q"}, (Template(0, Pattern("{z}"), Pattern("{q}")),))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"q": "x"}, "task 't', template 0: the row has no field 'a'; it has 'q'"),
        ({"q": None, "a": "y"}, "task 't', template 0: field 'q' is null"),
        ({"q": ["x"], "a": "y"}, "task 't', template 0: field 'q' is a list"),
        ({"q": float("nan"), "a": "y"}, "field 'q' is nan"),
    ],
)
def test_a_row_that_lacks_a_field_is_a_fault(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowFault) as fault:
        Renderer(Task("t", FIELDS, TEN), Settings()).values(row)
    assert said in fault.value.message
    assert str(fault.value.at("f.jsonl", 7)).startswith("f.jsonl:7: ")


def test_an_empty_reply_is_a_fault() -> None:
    with pytest.raises(RowFault, match=r"task 't', template \d: the completion of this row"):
        examples(Renderer(Task("t", FIELDS, TEN), Settings()), {"q": "x", "a": " "})


@pytest.mark.parametrize("draws", [1, 10_000])
def test_each_of_ten_templates_is_used_a_tenth_of_the_time(draws: int) -> None:
    renderer = Renderer(Task("t", FIELDS, TEN), Settings(draws=draws, seed=3))
    rows = [{"q": f"question {n}", "a": str(n)} for n in range(10_000 // draws)]
    used = Counter(e.template for row in rows for e in examples(renderer, row))
    assert sum(used.values()) == 10_000
    assert all(900 <= used[n] <= 1_100 for n in range(10)), used


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 3.0])
def test_inverse_templates_weigh_as_a_group(weight: float) -> None:
    settings = Settings(inverse_weight=weight, seed=1)
    renderer = Renderer(Task("t", FIELDS, TEN_AND_TWO), settings)
    rows = [{"q": f"question {n}", "a": str(n)} for n in range(20_000)]
    used = Counter(e.template for row in rows for e in examples(renderer, row))
    inverse = used[10] + used[11]
    assert abs(inverse / 20_000 - weight / (1 + weight)) < 0.01
    if weight:
        assert abs(used[11] / inverse - 0.75) < 0.03


def test_a_row_gets_the_same_examples_wherever_it_stands() -> None:
    task = Task("t", FIELDS, TEN_AND_TWO)
    rows = [{"q": f"question {n}", "a": str(n % 7), "id": n} for n in range(300)]
    shuffled = random.Random(5).sample(rows, len(rows))

    def by_question(rows: list[dict[str, Any]], seed: int) -> dict[str, list[Rendered]]:
        renderer = Renderer(task, Settings(draws=3, seed=seed))
        return {row["q"]: examples(renderer, row) for row in rows}

    assert by_question(rows, 1) == by_question(shuffled, 1)
    assert by_question(rows, 1) != by_question(rows, 2)
    renamed = [{**row, "id": -1} for row in rows]
    assert by_question(rows, 1) == by_question(renamed, 1)


def test_the_draws_of_a_row_take_its_templates_in_turn() -> None:
    renderer = Renderer(Task("t", FIELDS, TEN), Settings(draws=10))
    for n in range(50):
        used = Counter(e.template for e in examples(renderer, {"q": str(n), "a": "x"}))
        assert max(used.values()) <= 2


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_an_inverse_weight_is_a_number(weight: float) -> None:
    with pytest.raises(UsageError):
        Settings(inverse_weight=weight)


def test_a_task_of_inverse_templates_needs_their_weight() -> None:
    task = Task("t", FIELDS, (Template(0, Pattern("{a}"), Pattern("{q}"), kind="inverse"),))
    assert examples(Renderer(task, Settings()), {"q": "1", "a": "2"})[0].kind == "inverse"
    with pytest.raises(DataError, match="all templates are inverse"):
        Renderer(task, Settings(inverse_weight=0))
