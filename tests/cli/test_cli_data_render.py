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

TEMPLATES = Path(__file__).parents[2] / "data" / "templates"
TASKS = (
    '[[task]]\nname = "qa"\nfields = ["question", "answer"]\n'
    '[[task.template]]\ninput = "Q: {question}"\ntarget = "{answer}"\n'
    '[[task.template]]\ninput = "Please answer.\\n\\n{question}"\ntarget = "{answer}"\n'
    '[[task.template]]\nkind = "inverse"\ninput = "Ask for: {answer}"\ntarget = "{question}"\n'
)


def write_rows(path: Path, numbers: range, **more: object) -> Path:
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}", **more} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Render:
    """`data render` with a task file; folders and files are named within `home`."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys
        self.tasks(TASKS)

    def tasks(self, text: str) -> None:
        (self.home / "tasks.toml").write_text(text, encoding="utf-8")

    def __call__(
        self, rows: Path, *flags: object, out: str = "out", tasks: Path | None = None, code: int = 0
    ) -> dict[str, Any]:
        """The object that it prints."""
        tasks = tasks or self.home / "tasks.toml"
        argv = [rows, "--templates", tasks, *flags, "--out", self.home / out, "--json", "--offline"]
        with pytest.raises(SystemExit) as left:
            main(["data", "render", *map(str, argv)])
        printed = self._capsys.readouterr().out
        assert (left.value.code or 0) == code, printed
        value: dict[str, Any] = json.loads(printed)
        return value

    def rows(self, out: str = "out", name: str = "train") -> list[dict[str, Any]]:
        lines = (self.home / out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Render:
    return Render(tmp_path, capsys)


def test_rows_become_a_data_folder(tmp_path: Path, render: Render) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(400))
    made = render(rows, "--draws", 2, "--split", "0.8/0.1/0.1")
    assert (made["rows"], made["examples"], made["rejected"], made["dropped"]) == (400, 800, 0, 0)
    splits = load_splits(tmp_path / "out")
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 800
    assert 40 < len(splits.valid) < 120
    first = splits.train[0]
    assert {"task", "template", "template_kind", "source", "origin"} <= first.tags.keys()
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


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, render: Render) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(200))
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        render(rows, "--options", "random", "--seed", seed, out=name)
    a, b, c = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(random.Random(0).sample(lines, len(lines))))
    render(rows, "--seed", 5, out="d")
    one, shuffled = render.rows("a"), render.rows("d")
    for row in (*one, *shuffled):
        del row["origin"]
    assert shuffled != one
    assert sorted(map(json.dumps, shuffled)) == sorted(map(json.dumps, one))


def test_shots_keep_to_the_budget_and_to_the_training_split(
    tmp_path: Path, render: Render, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_rows(folder / "train.jsonl", range(120))
    write_rows(folder / "validation.jsonl", range(100, 140))
    write_rows(folder / "test.jsonl", range(140, 160))
    flags = ("--shots", "0,1,2,5", "--shot-budget", 160, "--model", tiny_model_dir)
    made = render(folder, "--seed", 2, *flags)
    assert made["examples"] + made["dropped"] == 180
    tokenizer = load_tokenizer(tiny_model_dir)
    used: Counter[str] = Counter()
    for row in (row for name in ("train", "valid", "test") for row in render.rows(name=name)):
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


def test_prompts_that_can_keep_no_exemplar_are_dropped_and_listed(
    tmp_path: Path, render: Render, tiny_model_dir: Path
) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(60))
    flags = ("--model", tiny_model_dir, "--shot-budget", 5)
    made = render(rows, *flags, "--shots", "0,2")
    assert made["dropped"] > 10
    assert made["examples"] + made["dropped"] == 60
    assert len(render.rows(name="removed")) == made["dropped"]
    none = render(rows, *flags, "--shots", "2", out="none", code=3)
    assert "60 asked for exemplars and could keep none" in none["error"]["message"]
    assert not (tmp_path / "none").exists()


def test_a_row_without_a_field_stops_everything_unless_told_otherwise(
    tmp_path: Path, render: Render
) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(5))
    with rows.open("a") as file:
        file.write('{"question": "no answer"}\nnot json\n')
    message = render(rows, code=3)["error"]["message"]
    assert "2 of 7 rows cannot be rendered" in message
    assert "raw.jsonl:6: missing-field: task 'qa', template 0: the row has no field" in message
    assert not (tmp_path / "out").exists()
    made = render(rows, "--keep-going")
    assert (made["examples"], made["rejected"]) == (5, 2)
    assert [fault["line"] for fault in made["faults"]] == [6, 7]
    assert len(render.rows(name="rejected")) == 2


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--task", "qq"), 2, "no task 'qq'"),
        (("--shots", "0,x"), 2, "not a list of numbers"),
        (("--shots", "1"), 2, "--shots needs --model"),
        (("--model", "starter"), 2, "--model has no effect"),
        (("--split", "2/1"), 2, "adds up to 3"),
        (("--inverse-weight", "-1"), 2, "-1"),
        (("--inverse-weight", "nan"), 2, "at least 0"),
        (("--columns", "a,b"), 3, "--columns is for CSV, TSV and XLSX"),
        (("--shots", "1", "--model", "no/such/model"), 4, "no/such/model"),
    ],
)
def test_a_wrong_flag_is_one_line(
    tmp_path: Path, render: Render, flags: tuple[str, ...], code: int, said: str
) -> None:
    rows = write_rows(tmp_path / "raw.jsonl", range(5))
    error = render(rows, *flags, code=code)["error"]
    assert said in f"{error['where']} {error['message']} {error['hint']}"
    assert not (tmp_path / "out").exists()


def test_every_task_of_a_file_is_rendered_unless_one_is_named(
    tmp_path: Path, render: Render
) -> None:
    render.tasks(
        TASKS.replace("{question}", "{question}n\\n", 1) + TASKS.replace('"qa"', '"again"')
    )
    rows = write_rows(tmp_path / "raw.jsonl", range(20), source="school")
    made = render(rows, out="both")
    assert made["examples"] == 40
    assert next((w["code"], w["template"]) for w in made["warnings"]) == ("stray-n", 0)
    assert render(rows, "--task", "again")["examples"] == 20
    assert {(row["task"], row["source"]) for row in render.rows()} == {("again", "school")}


def test_nested_columns_are_split_by_what_they_say(tmp_path: Path, render: Render) -> None:
    rows = tmp_path / "raw.jsonl"
    nested = [{"turns": [{"q": f"Is it {n}?"}, {"a": "yes"}]} for n in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in nested))
    columns = '{question = "turns.0.q", answer = "turns.1.a"}'
    render.tasks(TASKS.replace('["question", "answer"]', columns))
    assert min(render(rows, "--split", "50/50")["splits"].values()) > 15


@pytest.mark.parametrize("header", [True, False])
def test_a_table_may_lack_a_header(tmp_path: Path, render: Render, header: bool) -> None:
    lines = [f"Is {n} even?\t{'no' if n % 2 else 'yes'}\tIt ends in {n}." for n in range(8)]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join([*["question\tanswer\trationale"] * header, *lines]) + "\n")
    flags = () if header else ("--columns", "question,answer,rationale")
    tasks = TEMPLATES / "yes_no.toml"
    assert render(path, *flags, "--options", "letters", tasks=tasks)["rows"] == 8
    wrong = render(path, "--columns", "question,answer", tasks=tasks, out="no", code=3)
    assert "has 3 columns" in wrong["error"]["message"]
