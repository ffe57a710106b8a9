"""Task files, their warnings, the choice of templates and few-shot prompts."""

import random
from collections import Counter
from pathlib import Path

import pytest

from mlx_itune.dataset.conversation import RowFault
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.templating.options import PatternError, parse
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.dataset.templating.render import ExemplarPool, Renderer, fit, values_of
from mlx_itune.dataset.templating.tasks import Task, Template, lint, load_tasks
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.kit.errors import DataError

TEN = tuple(Template(f"{n}. {{q}}", "{a}") for n in range(10))
TEN_AND_TWO = (
    *TEN,
    Template("Ask for: {a}", "{q}", "inverse"),
    Template("What gives {a}?", "{q}", "inverse", weight=3),
)
SHIPPED = sorted((Path(__file__).parents[2] / "data" / "templates").glob("*.toml"))
ROWS = [{"q": f"ask {n} end", "a": f"reply {n} end"} for n in range(60)]


def task(*templates, **more):
    return Task(**{"name": "t", "fields": ("q", "a"), "template": templates, **more})


QA = task(*(Template(f"T{n} {{q}}", f"R{n} {{a}}") for n in range(4)))


def examples(renderer, row):
    return renderer.examples(values_of(renderer.task, row))


def used(renderer, count):
    rows = ({"q": f"question {n}", "a": str(n)} for n in range(count))
    return Counter(example.template for row in rows for example in examples(renderer, row))


def words(texts):
    return [len(text.split()) for text in texts]


def few_shot(rows, *, pool=(), task=QA, budget=10_000, **settings):
    plan = RenderPlan(**{"model": "starter", "shot_budget": budget, **settings})
    renderer = Renderer(task, plan)
    for row in pool or rows:
        renderer.pool.add(values_of(task, row))
    made = [example for row in rows for example in examples(renderer, row)]
    fit(made, budget, words)
    return made


def test_the_shipped_task_files_load_and_are_clean():
    tasks = [task for path in SHIPPED for task in load_tasks(path)]
    assert {"grade-school-math", "yes-no"} <= {task.name for task in tasks}
    assert all(sum(t.kind == "normal" for t in task.template) >= 10 for task in tasks)
    assert lint(tasks) == []


def test_a_pattern_inserts_values_verbatim():
    pattern = parse("{{literal}} 100% {q}{a} %s {q}")
    values = {"q": "{a} %d {{x}} {", "a": "\\1 {q}"}
    wanted = "{literal} 100% {a} %d {{x}} {\\1 {q} %s {a} %d {{x}} {"
    assert pattern.render(values) == wanted
    assert pattern.fields == ("q", "a")
    for text in ("{", "a } b", "{q", "q}", "{{q}", "{}", "{a{b}}", "a\x01b"):
        with pytest.raises(PatternError):
            parse(text)


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
        (HEAD + GOOD.replace("{premise}", "{premise"), "template 0: the input has a lone brace"),
        (HEAD.replace('"label"]', '"label", "extra"]') + GOOD, ":1: task 'rte': field 'extra' is "
         "declared and no template (0-0) uses it"),
        (HEAD + GOOD + 'wieght = 2\n', "template 0: wieght: unknown key (did you mean weight?)"),
        (HEAD.replace("name", "nmae") + GOOD, "nmae: unknown key (did you mean name?)"),
        (HEAD.replace('answer = "label"', 'answer = "lable"') + GOOD, "did you mean label?"),
        (HEAD + 'options = "chioces"\n' + GOOD, "options names 'chioces'"),
        (HEAD + 'options = ["a", "a"]\n' + GOOD, "lists 'a' twice"),
        (HEAD + GOOD + 'kind = "inverted"\n', "template 0: kind: 'normal' or 'inverse' is needed"),
        (HEAD + GOOD + "weight = -1\n", "weight: more than 0.0 is needed, not -1"),
        (HEAD + '[[task.template]]\ninput = ""\ntarget = "{answer}{premise}"\n', "input is empty"),
        (HEAD + GOOD + '[[task.template]]\nkind = "inverse"\ninput = "{premise}: {label}"\n'
         'target = "{answer}"\n', ":8: task 'rte', template 1: is inverse and has {label} in its "
         "input and in its target"),
        (HEAD, "has no [[task.template]]"),
        ("name = 'x'\n", "has no [[task]]"),
        ("[[task]\n", "not a TOML file"),
        ("task = [" * 3000, "not a TOML file"),
        (HEAD + GOOD + HEAD + GOOD, "task 'rte': is defined twice"),
        (HEAD + GOOD.replace("{premise}", "{x}{premise}") + GOOD.replace("{answer}", "{y}"),
         "line 8: task 'rte', template 1: the target uses {y}"),
    ],
)  # fmt: skip
def test_a_broken_task_file_is_refused_with_its_place(tmp_path, text, said):
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        load_tasks(path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize(
    ("template", "codes"),
    [
        (("{q}n\nTrue?", "{a}"), "stray-n"),
        (("{q}", "{a}n"), "stray-n"),
        (("{q}\n \n\t\nA:", "{a}"), "blank-lines trailing-space"),
        (("Question:\nquestion: {q}", "{a}"), "doubled-prefix"),
        (("{q}\nAnswer:", "Answer: {a}"), "doubled-prefix"),
        (("{q} \nA:", "{a}"), "trailing-space"),
        (("two  spaces {q}", "{a}"), "double-space"),
        (("{q}\n", "{a}"), "outer-space"),
        (("\n{q}", "{a}"), "outer-space"),
        ((r"{q}\nA:", "{a}"), "backslash"),
        (("...", "!"), "empty"),
        (("{q}", "yes"), "constant-target"),
        (("{q} is {a}?", "{a}"), "answer-in-input"),
        (("{a}", "{q}"), "looks-inverse"),
        (("Q: {q}", "{a}", "normal", 1.0, None, "Q: "), "doubled-prefix"),
        (("{q}\nA:", "{a}", "normal", 1.0, None, None, "A: "), "doubled-prefix"),
        (("{q}", "{a}", "inverse"), "looks-normal"),
        *(((fine, "{a}"), "") for fine in ("{q}\n\nA:", "in {q}\nso", "A: {q} A:", "{{n}}: {q}")),
        (("{q}", "{a}", "normal", 1.0, None, "Q: ", "A: "), ""),
        (("{a}", "{q}", "inverse"), ""),
    ],
)
def test_what_looks_wrong_is_told(template, codes):
    warnings = lint([task(TEN[0], Template(*template), answer="a")])
    assert {warning.template for warning in warnings} <= {1}
    assert " ".join(warning.code for warning in warnings) == codes


def test_each_of_ten_templates_is_used_a_tenth_of_the_time():
    counts = used(Renderer(task(*TEN), RenderPlan(seed=3)), 10_000)
    assert all(900 <= counts[n] <= 1_100 for n in range(10)), counts
    with pytest.raises(RowFault, match="the completion of this row is empty"):
        examples(Renderer(task(*TEN), RenderPlan()), {"q": "x", "a": " "})
    # The draws of one row take its templates in turn.
    renderer = Renderer(task(*TEN), RenderPlan(draws=10))
    for row in ROWS:
        assert max(Counter(e.template for e in examples(renderer, row)).values()) <= 2


@pytest.mark.parametrize("weight", [0.0, 0.3, 3.0])
def test_inverse_templates_weigh_as_a_group(weight):
    plan = RenderPlan(inverse_weight=weight, seed=1)
    counts = used(Renderer(task(*TEN_AND_TWO), plan), 20_000)
    inverse = counts[10] + counts[11]
    assert abs(inverse / 20_000 - weight / (1 + weight)) < 0.01
    assert not weight or abs(counts[11] / inverse - 0.75) < 0.03
    only = task(TEN_AND_TWO[-1])
    if weight:
        assert examples(Renderer(only, plan), {"q": "1", "a": "2"})[0].completion == "1"
    else:
        with pytest.raises(DataError, match="all templates are inverse"):
            Renderer(only, plan)


def test_the_layout_is_the_documented_one():
    for example in few_shot(ROWS, shots="2"):
        n = example.template
        *shots, query = example.text.split("\n\n\n")
        pairs = [shot.split("\n\n") for shot in shots]
        assert [(asked[:6], told[:8]) for asked, told in pairs] == [
            (f"T{n} ask", f"R{n} reply")
        ] * 2
        assert all(asked[6:] == told[8:] for asked, told in pairs)
        assert (query[:6], example.completion[:8]) == (f"T{n} ask", f"R{n} reply")
    own = Template("{q}", "{a}", input_prefix="Q: ", target_prefix="A: ")
    given = task(own, xy_delimiter="\n", example_separator="\n--\n")
    one, two = {"q": "one?", "a": "1"}, {"q": "two?", "a": "2"}
    (example,) = few_shot([one], pool=[two], task=given, shots="1")
    assert example.text == "Q: two?\nA: 2\n--\nQ: one?\nA:"


def test_an_exemplar_is_never_the_query_nor_reads_like_it():
    twice = [*ROWS[:4], *({"q": r["q"].upper() + "  ", "a": r["a"]} for r in ROWS[:4])]
    for example in few_shot(twice, shots="100"):
        *shots, query = example.text.split("\n\n\n")
        key = query[3:].strip().casefold()
        assert len(shots) == 3
        assert all(key not in shot.casefold() for shot in shots)
    given = task(Template("{q}", "{a}"), Template("{q}", "{why}"), fields=("q", "a", "why"))
    alike = [{"q": "same", "a": "yes", "why": str(n)} for n in range(30)]
    for example in few_shot(alike, task=given, shots="5"):
        assert example.is_dropped == (example.template == 0)
        assert f"same\n\n{example.completion}" not in example.text


def test_exemplars_go_until_the_prompt_fits_its_budget():
    chance = random.Random(4)
    long = [{"q": "q " * chance.randint(1, 40), "a": f"{n}"} for n in range(200)]
    made, free = few_shot(long, shots="5", budget=60), few_shot(long, shots="5", budget=61)
    assert {len(e.exemplars) for e in made} >= {0, 1, 2, 3}
    assert all(example.is_dropped or words([example.text])[0] <= 60 for example in made)
    for tight, loose in zip(made, free, strict=True):
        assert tight == loose or words([loose.text])[0] == 61
    alone = few_shot(ROWS[:1], shots="0,3", draws=20)
    assert {(e.asked, e.is_dropped) for e in alone} == {(0, False), (3, True)}


def test_exemplars_depend_on_the_rows_and_not_on_their_order():
    made = few_shot(ROWS, shots="3")
    assert made == few_shot(ROWS, pool=random.Random(1).sample(ROWS, len(ROWS)), shots="3")
    assert made != few_shot(ROWS, shots="3", seed=9)
    prompts = "\n".join(example.text for example in few_shot(ROWS, shots="5", draws=8))
    assert all(prompts.count(f"reply {n} end") > 5 for n in range(60))


def test_the_pool_is_bounded_and_keeps_the_same_rows_in_any_order():
    *values, query = (values_of(QA, {"q": f"{n}", "a": f"{n}"}) for n in range(501))
    kept = []
    for seed in range(4):
        pool = ExemplarPool(0, "t", 1920, most=100)
        for one in random.Random(seed).sample(values, len(values)):
            pool.add(one)
        kept.append(set(pool.candidates(query, 1)))
    assert len(kept[0]) == 100
    assert all(one == kept[0] for one in kept)


def test_nothing_of_an_exemplar_is_learned(tiny_model_dir):
    tokenizer = load_tokenizer(tiny_model_dir)
    made = few_shot(ROWS, shots="1,2,5")
    given = [e.conversation(f"f:{n}", {"source": "f"}) for n, e in enumerate(made)]
    prepared = prepare(given, tokenizer, max_length_tokens=4_096).examples
    for example, one in zip(prepared, made, strict=True):
        learned = tokenizer.decode(example.input_ids[example.weights > 0])
        assert learned == f"{one.completion}<|end|>"
