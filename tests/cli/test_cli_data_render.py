"""`data render` from raw rows to a data folder that trains."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from mlx_itune.dataset.importing.provenance import verify
from mlx_itune.dataset.sources import load_splits
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer

TEMPLATES = Path(__file__).parents[2] / "data" / "templates"
TASKS = (
    '[[task]]\nname = "qa"\nfields = ["question", "answer"]\n'
    '[[task.template]]\ninput = "Q: {question}"\ntarget = "{answer}"\n'
    '[[task.template]]\ninput = "Please answer.\\n\\n{question}"\ntarget = "{answer}"\n'
    '[[task.template]]\nkind = "inverse"\ninput = "Ask for: {answer}"\ntarget = "{question}"\n'
)


def asked(numbers, **more):
    return [{"question": f"What is {n} + 1?", "answer": f"{n + 1}", **more} for n in numbers]


@pytest.fixture
def render(run):
    """`data render` through TASKS, or other tasks."""

    def render(rows, *flags, out="out", tasks=TASKS, code=0):
        file = run.home / "tasks.toml"
        file.write_text(tasks, encoding="utf-8")
        return run("render", rows, "--templates", file, *flags, out=out, code=code)

    return render


def test_rows_become_a_data_folder(run, render):
    rows = run.write("raw.jsonl", asked(range(400)))
    made = render(rows, "--draws", 2, "--split", "0.8/0.1/0.1")
    assert (made["rows"], made["examples"], made["rejected"], made["dropped"]) == (400, 800, 0, 0)
    splits = load_splits(run.home / "out")
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 800
    assert 40 < len(splits.valid) < 120
    first = splits.train[0]
    assert {"task", "template", "template_kind", "source", "origin"} <= first.tags.keys()
    assert first.tags["source"] == "raw.jsonl"
    said = [{t.content for c in part for t in c.turns} for part in (splits.train, splits.valid)]
    numbers = [{text.split("is ")[-1] for text in part if "is " in text} for part in said]
    assert not numbers[0] & numbers[1], "all draws of a row in one split"
    assert verify(run.home / "out") == []
    record = run.record("out")
    assert (record["command"], record["settings"]["seed"]) == ("render", 0)
    assert record["sources"][0]["rows"] == 400
    kinds = record["render"]["tasks"][0]["kinds"]
    assert kinds["inverse"]["requested"] == pytest.approx(0.3 / 1.3)
    assert abs(kinds["inverse"]["achieved"] - 0.3 / 1.3) < 0.05


def test_the_same_seed_gives_the_same_bytes_in_any_order_of_rows(run, render):
    rows = asked(range(200))
    raw = run.write("raw.jsonl", rows)
    flags = ("--options", "random", "--draws", 3, "--seed")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        render(raw, *flags, seed, out=name)
    a, b, c = ((run.home / name / "train.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    render(run.write("raw.jsonl", random.Random(0).sample(rows, len(rows))), *flags, 5, out="d")
    one, shuffled = ([{**row, "origin": ""} for row in run.rows(name)] for name in "ad")
    assert shuffled != one
    assert sorted(map(json.dumps, shuffled)) == sorted(map(json.dumps, one))


def test_shots_keep_to_the_budget_and_to_the_training_split(run, render, tiny_model_dir):
    run.write("raw/train.jsonl", asked(range(120)))
    run.write("raw/validation.jsonl", asked(range(100, 140)))
    run.write("raw/test.jsonl", asked(range(140, 160)))
    flags = ("--shots", "0,1,2,5", "--shot-budget", 160, "--model", tiny_model_dir)
    made = render(run.home / "raw", "--seed", 2, *flags)
    assert made["examples"] + made["dropped"] == 180
    tokenizer = load_tokenizer(tiny_model_dir)
    used = Counter()
    for row in (row for name in ("train", "valid", "test") for row in run.rows("out", name)):
        prompt = row["messages"][0]["content"]
        *shots, query = prompt.split("\n\n\n")
        used[row["shots"]] += 1
        assert row["shots"] == str(len(shots))
        assert not shots or len(tokenizer.encode_ids(prompt)) <= 160
        # Rows 100 to 119 stand in train and in valid: no prompt may show them.
        shown = "\n".join(shots)
        assert not any(f"What is {n} + 1?" in shown for n in range(100, 160))
        assert f"{query}\n\n" not in shown
    assert len(used) >= 3


def test_prompts_that_can_keep_no_exemplar_are_dropped_and_listed(run, render, tiny_model_dir):
    rows = run.write("raw.jsonl", asked(range(60)))
    flags = ("--model", tiny_model_dir, "--shot-budget", 5)
    made = render(rows, *flags, "--shots", "0,2")
    assert made["dropped"] > 10 and made["examples"] + made["dropped"] == 60
    assert len(run.rows("out", "removed")) == made["dropped"]
    none = render(rows, *flags, "--shots", "2", out="none", code=3)
    assert "60 asked for exemplars and could keep none" in none["error"]["message"]
    assert not (run.home / "none").exists()


def test_a_row_without_a_field_stops_everything_unless_told_otherwise(run, render):
    rows = run.write("raw.jsonl", asked(range(5)))
    with rows.open("a") as file:
        file.write('{"question": "no answer"}\nnot json\n')
    message = render(rows, code=3)["error"]["message"]
    assert "2 of 7 rows cannot be rendered" in message
    assert "raw.jsonl:6: missing-field: task 'qa', template 0: the row has no field" in message
    assert not (run.home / "out").exists()
    made = render(rows, "--keep-going")
    assert (made["examples"], made["rejected"]) == (5, 2)
    assert [fault["line"] for fault in made["faults"]] == [6, 7]
    assert len(run.rows("out", "rejected")) == 2


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--task qq", 2, "no task 'qq'"),
        ("--shots 0,x", 2, "not a list of numbers"),
        ("--shots 1", 2, "--shots needs --model"),
        ("--model starter", 2, "--model has no effect"),
        ("--split 2/1", 2, "adds up to 3"),
        ("--inverse-weight -1", 2, "-1"),
        ("--inverse-weight nan", 2, "at least 0"),
        ("--columns a,b", 3, "--columns is for CSV, TSV and XLSX"),
        ("--shots 1 --model no/such/model", 4, "no/such/model"),
    ],
)
def test_a_wrong_flag_is_one_line(run, render, flags, code, said):
    rows = run.write("raw.jsonl", asked(range(5)))
    error = render(rows, *flags.split(), code=code)["error"]
    assert said in f"{error['where']} {error['message']} {error['hint']}"
    assert not (run.home / "out").exists()


def test_tasks_are_chosen_and_nested_columns_split_by_what_they_say(run, render):
    tasks = TASKS.replace("{question}", "{question}n\\n", 1) + TASKS.replace('"qa"', '"again"')
    rows = run.write("raw.jsonl", asked(range(20), source="school"))
    made = render(rows, out="both", tasks=tasks)
    assert made["examples"] == 40
    assert (made["warnings"][0]["code"], made["warnings"][0]["template"]) == ("stray-n", 0)
    assert render(rows, "--task", "again", tasks=tasks)["examples"] == 20
    assert {(row["task"], row["source"]) for row in run.rows("out")} == {("again", "school")}
    nested = ({"turns": [{"q": f"Is it {n}?"}, {"a": "yes"}]} for n in range(60))
    tasks = TASKS.replace('["question", "answer"]', '{question="turns.0.q", answer="turns.1.a"}')
    rows = run.write("raw.jsonl", nested)
    made = render(rows, "--split", "50/50", out="nested", tasks=tasks)
    assert min(made["splits"].values()) > 15


@pytest.mark.parametrize("header", [True, False])
def test_a_table_may_lack_a_header(run, render, header):
    lines = [f"Is {n} even?\t{'no' if n % 2 else 'yes'}\tIt ends in {n}." for n in range(8)]
    path = run.home / "rows.tsv"
    path.write_text("\n".join([*["question\tanswer\trationale"] * header, *lines]) + "\n")
    flags = () if header else ("--columns", "question,answer,rationale")
    tasks = (TEMPLATES / "yes_no.toml").read_text(encoding="utf-8")
    assert render(path, *flags, "--options", "letters", tasks=tasks)["rows"] == 8
    wrong = render(path, "--columns", "question,answer", tasks=tasks, out="no", code=3)
    assert "has 3 columns" in wrong["error"]["message"]
