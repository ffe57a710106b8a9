"""Templates that break no rule and still look wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_itune.dataset.templating.lints import lint
from mlx_itune.dataset.templating.pattern import Pattern
from mlx_itune.dataset.templating.task_file import load_tasks
from mlx_itune.dataset.templating.tasks import Kind, Task, Template


def codes(
    asked: str,
    told: str = "{a}",
    *,
    kind: Kind = "normal",
    input_prefix: str = "",
    target_prefix: str = "",
) -> list[str]:
    template = Template(
        1,
        Pattern(asked),
        Pattern(told),
        kind,
        input_prefix=input_prefix,
        target_prefix=target_prefix,
    )
    both = Template(0, Pattern("{q}"), Pattern("{a}"))
    task = Task("t", {"q": "q", "a": "a"}, (both, template), answer="a")
    return [warning.code for warning in lint([task]) if warning.template == 1]


@pytest.mark.parametrize(
    ("asked", "told", "code"),
    [
        ("{q}n\nTrue?", "{a}", "stray-n"),
        ("{q}nn\nTrue?", "{a}", "stray-n"),
        ("{q}", "{a}n", "stray-n"),
        ("{q}\n\n\nA:", "{a}", "blank-lines"),
        ("{q}\n \n\t\nA:", "{a}", "blank-lines"),
        ("Q: Q: {q}", "{a}", "doubled-prefix"),
        ("Question:\nquestion: {q}", "{a}", "doubled-prefix"),
        ("{q}\nAnswer:", "Answer: {a}", "doubled-prefix"),
        ("{q} \nA:", "{a}", "trailing-space"),
        ("{q}\nA: ", "{a}", "trailing-space"),
        ("two  spaces {q}", "{a}", "double-space"),
        ("{q}\n", "{a}", "outer-space"),
        ("\n{q}", "{a}", "outer-space"),
        (r"{q}\nA:", "{a}", "backslash"),
        ("...", "!", "empty"),
        ("{q}", "yes", "constant-target"),
        ("{q} is {a}?", "{a}", "answer-in-input"),
        ("{a}", "{q}", "looks-inverse"),
    ],
)
def test_what_looks_wrong_is_told(asked: str, told: str, code: str) -> None:
    assert code in codes(asked, told)


@pytest.mark.parametrize(
    "asked",
    [
        "{q}\n\nA:",
        "in {q}\nso",
        "Q: {q}\nA:",
        "A: {q} A:",
        "a: b {q}",
        "{q}, then\nnow",
        "{{n}}: {q}",
    ],
)
def test_what_is_fine_is_left_alone(asked: str) -> None:
    assert codes(asked) == []


def test_prefixes_of_few_shot_prompts_are_seen_too() -> None:
    assert codes("Q: {q}", input_prefix="Q: ") == ["doubled-prefix"]
    assert codes("{q}\nA:", target_prefix="A: ") == ["doubled-prefix"]
    assert codes("{q}", input_prefix="Q: ", target_prefix="A: ") == []


def test_an_inverse_template_that_asks_for_the_answer_looks_normal() -> None:
    assert codes("{q}", kind="inverse") == ["looks-normal"]
    assert codes("{a}", "{q}", kind="inverse") == []


def test_a_warning_names_its_task_and_template() -> None:
    template = Template(3, Pattern("{q}n\n{q}"), Pattern("{q}"))
    (warning,) = lint([Task("nli", {"q": "q"}, (template,))])
    assert str(warning).startswith("task 'nli', template 3: stray-n: the input has a lone 'n'")


def test_the_shipped_templates_are_clean() -> None:
    folder = Path(__file__).parents[2] / "data" / "templates"
    assert [w for path in folder.glob("*.toml") for w in lint(load_tasks(path))] == []
