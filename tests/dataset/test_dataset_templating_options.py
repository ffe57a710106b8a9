"""Options: the answer and its letter agree, and without options nothing of them is left."""

import random
import re
import string
from collections import Counter

import pytest

from mlx_itune.dataset.conversation import RowFault
from mlx_itune.dataset.templating.options import parse, without_options
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.dataset.templating.render import Renderer, values_of
from mlx_itune.dataset.templating.tasks import Task, Template
from mlx_itune.kit.errors import DataError

TASK = Task(
    "pick",
    ("q", "choices", "label"),
    (
        Template("Q: {q}\n\n{options_}\nA:", "{answer}"),
        Template("{options_}\n\n{q}", "It is {label}."),
    ),
    answer="label",
    options="choices",
)


def example(row, mode, task=TASK, seed=0):
    renderer = Renderer(task, RenderPlan(options=mode, seed=seed))
    return renderer.examples(values_of(task, row))[0]


def random_rows(count):
    chance = random.Random(11)
    rows = []
    for n in range(count):
        options = [
            "".join(chance.choices(string.ascii_letters + " {}()-.%", k=chance.randint(3, 12)))
            + f" {number}x"
            for number in range(chance.randint(2, 30))
        ]
        rows.append({"q": f"q{n}?", "choices": options, "label": chance.choice(options)})
    return rows


def test_answer_and_letter_agree_in_every_style():
    shapes = Counter()
    seen = set()
    for row in random_rows(1_000):
        made = example(row, "random")
        said = made.completion.removeprefix("It is ")
        said = said.removesuffix(".") if made.template == 1 else said
        options = row["choices"]
        # The list's lines, whatever their style: each ends in its option.
        lines = [line for line in made.prompt.split("\n") if line.endswith(tuple(options))]
        assert len(lines) == len(options)
        markers = [line.removesuffix(o) for line, o in zip(lines, options, strict=True)]
        if len(set(markers)) == 1:
            assert said == row["label"]
            shapes["text"] += 1
        else:
            names = [m.strip() if m[0] in "([" else m.rstrip(" .:)") for m in markers]
            assert len(set(names)) == len(names)
            assert said == names[options.index(row["label"])]
            shapes["name"] += 1
        seen |= {line for line in made.prompt.split("\n") if line.endswith(":") and line != "A:"}
    assert min(shapes["text"], shapes["name"]) > 150 and len(seen) >= 12
    # A marker is never what an option says.
    row = {"q": "1+1?", "choices": ["2", "1"], "label": "2"}
    for seed in range(300):
        prompt = example(row, "random", seed=seed).prompt
        assert not re.search(r"[\[(]?[12][\])]?[.):]? [12]$", prompt)


def test_each_layout_is_what_it_says():
    row = {"q": "1+1?", "choices": ["3", "2"], "label": "2"}
    for mode, completions, listed in (
        ("lines", {"2", "It is 2."}, "OPTIONS:\n- 3\n- 2"),
        ("letters", {"(B)", "It is (B)."}, "OPTIONS:\n(A) 3\n(B) 2"),
    ):
        made = [example(row, mode, seed=s) for s in range(20)]
        assert {e.completion for e in made} == completions
        assert all(listed in e.prompt for e in made)
    made = [example(row, "none", seed=s) for s in range(20)]
    assert {(e.prompt, e.completion) for e in made} == {
        ("Q: 1+1?\n\nA:", "2"),
        ("1+1?", "It is 2."),
    }
    templates = (Template("{q}", "{answer}"), Template("{q}\n{options_}", "{answer}"))
    task = Task("t", ("q", "a"), templates, "a", options=("yes", "no"))
    made = [example({"q": "x", "a": "no"}, "letters", task, s) for s in range(20)]
    assert {(e.template, e.completion) for e in made} == {(0, "no"), (1, "(B)")}, "no list shown"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("{q}\n{options_}", "{q}"),
        ("{q}\n\nOPTIONS:\n{options_}\n\nAnswer:", "{q}\n\nAnswer:"),
        ("{q}\n\nPossible labels:\n{options_}", "{q}"),
        ("{q} Pick one: {options_}", "{q}"),
        ("{q} {options_} {z}", "{q} {z}"),
        ("{p}\n{options_}\nQuestion: does it follow?\n{h}", "{p}\nQuestion: does it follow?\n{h}"),
        ("Is it true? Select from the options below.\n\n{p}\n\n{options_}", "Is it true?\n\n{p}"),
        ("Question with options: is {p} so?\n{options_}", "is {p} so?"),
        ("{p}\n\nWhich of these is right?\n{options_}\nA:", "{p}\n\nA:"),
        ("Judge:\n{p}\nIs the sentence true:\n{options_}", "Judge:\n{p}\nIs the sentence true:"),
        ("{p}\n\n\n{options_}\n\nA:", "{p}\n\n\nA:"),
        ("no list {p}", "no list {p}"),
    ],
)  # fmt: skip
def test_options_leave_with_their_header_and_their_gap(text, left):
    pattern, woven = without_options(parse(text))
    assert (str(pattern), woven) == (left, "")


@pytest.mark.parametrize(
    "text",
    ["Which of {options_} is {q}?", "{q} ({options_})", "With these options, is {q}?\n{options_}"],
)
def test_options_woven_into_a_sentence_need_a_wording_without(text):
    row, more = {"q": "x", "a": "no"}, {"answer": "a", "options": ("yes", "no")}
    woven = Task("t", ("q", "a"), (Template(text, "{answer}"),), **more)
    with pytest.raises(DataError, match=r"task 't', template 0: the input speaks of its options"):
        Renderer(woven, RenderPlan(options="none"))
    given = (Template(text, "{answer}", input_no_options="Is {q}?"),)
    assert example(row, "none", Task("t", ("q", "a"), given, **more)).prompt == "Is x?"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "c"}, "the answer 'c' is none of: 'a', 'b'"),
        ({"choices": ["a", "b", "a"]}, "the answer 'a' equals two options"),
        ({"choices": ["a", "a "]}, "equals two options"),
        ({"choices": []}, "no options"),
        ({"choices": ["a", " "]}, "an option is empty"),
        ({"choices": "a b"}, "is a str, not a list (options_separator splits a text)"),
        ({"choices": ["a", {"x": 1}]}, "is a dict"),
        ({"q": None}, "field 'q' is null"),
        ({"q": ["x"]}, "field 'q' is a list"),
        ({"q": float("nan")}, "field 'q' is nan"),
    ],
)
def test_a_row_without_what_its_task_needs_is_a_fault(change, said):
    with pytest.raises(RowFault, match="task 'pick', template 0: ") as fault:
        example({"q": "?", "choices": ["a", "b"], "label": "a", **change}, "letters")
    assert said in fault.value.message


def test_an_answer_may_be_an_index_or_a_letter_and_options_come_from_columns_or_one_text():
    templates = (Template("{q}\n{options_}", "{answer}"),)
    for kind, value, wanted in (
        ("index", 1, "no"), ("index", "0", "yes"), ("index", True, "no"), ("letter", "B", "no")
    ):  # fmt: skip
        task = Task("t", ("q", "a"), templates, "a", kind, ("yes", "no"))
        assert example({"q": "x", "a": value}, "lines", task).completion == wanted
        for wrong in (2, "C", -1, "x", "1.0"):
            with pytest.raises(RowFault):
                example({"q": "x", "a": wrong}, "lines", task)
    task = Task("t", ("q", "one", "two", "a"), templates, "a", "index", ("{one}", "{two}"))
    made = example({"q": "?", "one": "left", "two": "{right}", "a": 1}, "lines", task)
    assert (made.prompt, made.completion) == ("?\nOPTIONS:\n- left\n- {right}", "{right}")
    split = Task("t", ("q", "o", "a"), templates, "a", options="o", options_separator="|")
    made = example({"q": "?", "o": "red | green", "a": "green"}, "letters", split)
    assert made.prompt.endswith("(A) red\n(B) green")
