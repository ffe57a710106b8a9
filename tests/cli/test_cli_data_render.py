"""`data render` from raw rows to a data folder that trains."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main
from mlx_itune.dataset.importing.provenance import verify
from mlx_itune.dataset.sources import load_splits
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "data" / "templates"
REAL = ROOT.parent / "shared" / "data"
TASKS = (
    '[[task]]\nname = "qa"\nfields = ["question", "answer"]\n'
    '[[task.template]]\ninput = "Q: {question}"\ntarget = "{answer}"\n'
    '[[task.template]]\ninput = "Please answer.\\n\\n{question}"\ntarget = "{answer}"\n'
    '[[task.template]]\nkind = "inverse"\ninput = "Ask for: {answer}"\ntarget = "{question}"\n'
)


def render(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["data", "render", *map(str, argv), "--json", "--offline"])
    out = capsys.readouterr().out
    assert (left.value.code or 0) == code, out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, numbers: range, **more: object) -> Path:
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}", **more} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.toml"
    path.write_text(TASKS, encoding="utf-8")
    return path


def test_rows_become_a_data_folder(capsys: Capture, tmp_path: Path, tasks: Path) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(400))
    flags = (rows, "--templates", tasks, "--draws", 2, "--split", "0.8/0.1/0.1")
    made = render(capsys, *flags, "--out", tmp_path / "out")
    assert (made["rows"], made["examples"], made["rejected"], made["dropped"]) == (400, 800, 0, 0)
    splits = load_splits(tmp_path / "out")
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 800
    assert 40 < len(splits.valid) < 120
    first = splits.train[0]
    assert {"task", "template", "template_kind", "source"} <= first.tags.keys()
    assert first.tags["source"] == "raw.jsonl"
    asked = [{t.content for c in part for t in c.turns} for part in (splits.train, splits.valid)]
    numbers = [{text.split("is ")[-1] for text in part if "is " in text} for part in asked]
    assert not numbers[0] & numbers[1]
    assert verify(tmp_path / "out") == []
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (described["command"], described["settings"]["seed"]) == ("render", 0)
    assert described["sources"][0]["rows"] == 400
    kinds = described["render"]["tasks"][0]["kinds"]
    assert kinds["inverse"]["requested"] == pytest.approx(0.3 / 1.3)
    assert abs(kinds["inverse"]["achieved"] - 0.3 / 1.3) < 0.05


def test_the_same_seed_gives_the_same_bytes(capsys: Capture, tmp_path: Path, tasks: Path) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(200))
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        flags = ("--templates", tasks, "--options", "random", "--seed", seed)
        render(capsys, rows, *flags, "--out", tmp_path / name)
    a, b, c = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    lines = rows.read_text().splitlines(keepends=True)
    other = tmp_path / "raw2" / "raw.jsonl"
    other.parent.mkdir()
    other.write_text("".join(random.Random(0).sample(lines, len(lines))))
    render(capsys, other, "--templates", tasks, "--seed", 5, "--out", tmp_path / "d")
    one, shuffled = (rows_of(tmp_path / name / "train.jsonl") for name in "ad")
    for row in (*one, *shuffled):
        del row["origin"]
    assert shuffled != one
    assert sorted(map(json.dumps, shuffled)) == sorted(map(json.dumps, one))


def test_shots_keep_to_the_budget_and_to_the_training_split(
    capsys: Capture, tmp_path: Path, tasks: Path, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_rows(folder / "train.jsonl", range(120))
    write_rows(folder / "validation.jsonl", range(100, 140))
    write_rows(folder / "test.jsonl", range(140, 160))
    made = render(
        capsys, folder, "--templates", tasks, "--out", tmp_path / "out", "--seed", 2,
        "--shots", "0,1,2,5", "--shot-budget", 160, "--model", tiny_model_dir,
    )  # fmt: skip
    assert made["examples"] + made["dropped"] == 180
    tokenizer = load_tokenizer(tiny_model_dir)
    used: Counter[str] = Counter()
    for name in ("train", "valid", "test"):
        for row in rows_of(tmp_path / "out" / f"{name}.jsonl"):
            prompt = row["messages"][0]["content"]
            *shots, query = prompt.split("\n\n\n")
            used[row["shots"]] += 1
            assert row["shots"] == str(len(shots))
            if shots:
                assert len(tokenizer.encode_ids(prompt)) <= 160
            # Rows 100 to 119 stand in train and in valid: no prompt may show them.
            shown = "\n".join(shots)
            assert not any(f"What is {n} + 1?" in shown for n in range(100, 160))
            assert f"{query}\n\n" not in shown
    assert len(used) >= 3


def test_prompts_that_can_keep_no_exemplar_are_dropped_and_listed(
    capsys: Capture, tmp_path: Path, tasks: Path, tiny_model_dir: Path
) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(60))
    flags = (rows, "--templates", tasks, "--model", tiny_model_dir, "--shot-budget", 5)
    made = render(capsys, *flags, "--shots", "0,2", "--out", tmp_path / "out")
    assert made["dropped"] > 10
    assert made["examples"] + made["dropped"] == 60
    assert len(rows_of(tmp_path / "out" / "removed.jsonl")) == made["dropped"]
    none = render(capsys, *flags, "--shots", "2", "--out", tmp_path / "none", code=3)
    assert "60 asked for exemplars and could keep none" in none["error"]["message"]
    assert not (tmp_path / "none").exists()


def test_a_row_without_a_field_stops_everything_unless_told_otherwise(
    capsys: Capture, tmp_path: Path, tasks: Path
) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(5))
    with rows.open("a") as file:
        file.write('{"question": "no answer"}\nnot json\n')
    made = render(capsys, rows, "--templates", tasks, "--out", tmp_path / "out", code=3)
    message = made["error"]["message"]
    assert "2 of 7 rows cannot be rendered" in message
    assert "raw.jsonl:6: missing-field: task 'qa', template 0: the row has no field" in message
    assert not (tmp_path / "out").exists()
    flags = ("--templates", tasks, "--out", tmp_path / "out", "--keep-going")
    made = render(capsys, rows, *flags)
    assert (made["examples"], made["rejected"]) == (5, 2)
    assert [fault["line"] for fault in made["faults"]] == [6, 7]
    assert len(rows_of(tmp_path / "out" / "rejected.jsonl")) == 2


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--task", "qq"), 2, "no task 'qq'"),
        (("--shots", "0,x"), 2, "not a list of numbers"),
        (("--shots", "1"), 2, "--shots needs --model"),
        (("--model", "starter"), 2, "--model has no effect"),
        (("--split", "2/1"), 2, "adds up to 3"),
        (("--inverse-weight", "-1"), 2, "-1"),
        (("--inverse-weight", "nan"), 2, "inverse weight"),
        (("--columns", "a,b"), 3, "--columns is for CSV, TSV and XLSX"),
        (("--shots", "1", "--model", "no/such/model"), 4, "no/such/model"),
    ],
)
def test_a_wrong_flag_is_one_line(
    capsys: Capture, tmp_path: Path, tasks: Path, flags: tuple[str, ...], code: int, said: str
) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(5))
    out = tmp_path / "out"
    error = render(capsys, rows, "--templates", tasks, "--out", out, *flags, code=code)["error"]
    assert said in f"{error['where']} {error['message']} {error['hint']}"
    assert not out.exists()


def test_every_task_of_a_file_is_rendered_unless_one_is_named(
    capsys: Capture, tmp_path: Path, tasks: Path
) -> None:
    tasks.write_text(TASKS + TASKS.replace('"qa"', '"again"'))
    rows = write_rows(tmp_path / "raw.jsonl", range(20), source="school")
    both = render(capsys, rows, "--templates", tasks, "--out", tmp_path / "both")
    assert both["examples"] == 40
    one = render(capsys, rows, "--templates", tasks, "--task", "again", "--out", tmp_path / "one")
    made = rows_of(tmp_path / "one" / "train.jsonl")
    assert one["examples"] == 20
    assert {row["task"] for row in made} == {"again"}
    assert {row["source"] for row in made} == {"school"}


def test_nested_columns_are_split_by_what_they_say(
    capsys: Capture, tmp_path: Path, tasks: Path
) -> None:
    rows = tmp_path / "raw.jsonl"
    nested = [{"turns": [{"q": f"Is it {n}?"}, {"a": "yes"}]} for n in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in nested))
    columns = '{question = "turns.0.q", answer = "turns.1.a"}'
    tasks.write_text(TASKS.replace('["question", "answer"]', columns))
    flags = ("--templates", tasks, "--split", "50/50", "--out", tmp_path / "out")
    made = render(capsys, rows, *flags)
    assert min(made["splits"].values()) > 15


def test_warnings_are_listed(capsys: Capture, tmp_path: Path, tasks: Path) -> None:
    tasks.write_text(TASKS.replace("{question}", "{question}n\\n", 1))
    rows = write_rows(tmp_path / "raw.jsonl", range(5))
    made = render(capsys, rows, "--templates", tasks, "--out", tmp_path / "out")
    assert "stray-n" in {warning["code"] for warning in made["warnings"]}
    assert made["warnings"][0]["template"] == 0


@pytest.mark.parametrize("header", [True, False])
def test_a_table_may_lack_a_header(capsys: Capture, tmp_path: Path, header: bool) -> None:
    lines = [f"Is {n} even?\t{'no' if n % 2 else 'yes'}\tIt ends in {n}." for n in range(8)]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join([*["question\tanswer\trationale"] * header, *lines]) + "\n")
    flags = () if header else ("--columns", "question,answer,rationale")
    made = render(
        capsys, path, "--templates", TEMPLATES / "yes_no.toml", "--out", tmp_path / "out", *flags,
        "--options", "letters",
    )  # fmt: skip
    assert made["rows"] == 8
    wrong = ("--columns", "question,answer")
    flags = ("--templates", TEMPLATES / "yes_no.toml", "--out", tmp_path / "no", *wrong)
    assert "has 3 columns" in render(capsys, path, *flags, code=3)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "templates", "flags", "rows"),
    [
        ("gsm8k.jsonl", "grade_school_math", ("--options", "none"), 2_500),
        (
            "flan_cot_strategyqa.tsv",
            "yes_no",
            ("--columns", "question,answer,rationale", "--options", "random"),
            2_061,
        ),
    ],
)
def test_real_files_render(
    capsys: Capture, tmp_path: Path, name: str, templates: str, flags: tuple[str, ...], rows: int
) -> None:
    if not (REAL / name).exists():
        pytest.skip("the shared data are not here")
    task = TEMPLATES / f"{templates}.toml"
    made = render(capsys, REAL / name, "--templates", task, "--out", tmp_path / "out", *flags)
    assert (made["rows"], made["rejected"], made["examples"]) == (rows, 0, rows)
    assert made["warnings"] == []
    kinds = made["tasks"][0]["kinds"]
    assert abs(kinds["inverse"]["achieved"] - 0.3 / 1.3) < 0.03
    assert len(load_splits(tmp_path / "out").train) > 0.9 * rows
