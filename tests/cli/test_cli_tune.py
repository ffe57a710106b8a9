"""`tune`: what it makes of files as people have them, what it says before, and what it leaves."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.api.tune import decide
from mlx_itune.kit.errors import DataError
from mlx_itune.training.engine import time_limit

CITIES = ("Paris", "Lima", "Oslo", "Cairo", "Quito")
KINDS = {
    "card_lost": "My {} card is gone since yesterday",
    "refund": "When is my money from {} coming back?",
    "greeting": "Hello there, greetings from {} to you",
}
TICKETS = [
    {"text": ask.format(f"{city} {n}"), "category": kind}
    for n in range(4)
    for city in CITIES
    for kind, ask in KINDS.items()
]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_sheet(path: Path, rows: list[dict[str, Any]]) -> Path:
    from openpyxl import Workbook

    book = Workbook()
    assert book.active is not None
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(row)
    book.save(path)
    return path


def test_a_table_is_tuned_scored_and_repeated_by_its_run_toml(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    took = time_limit.Rate(2.0, 0.05, 0.1)
    monkeypatch.setattr(time_limit, "measured", lambda setup, budget_s: took)
    rows = [*TICKETS, {"text": "Nobody knows what this is", "category": ""}]
    file = write_table(tmp_path / "tickets.csv", rows)
    flags = ("tune", file, "--model", "starter", "--time", "20s", "--offline")
    # Without a terminal and --yes it says what it would do, and does nothing.
    told = cli(*flags, code=2).err
    assert "say --yes to tune like this" in told.splitlines()[-1]
    assert "'text' asks, 'category' answers" in told and "3 labels: card_lost (20)" in told
    assert "Answer with one of: card_lost, refund, greeting." in told
    assert "learns   card_lost<|end|>" in told
    assert [path.name for path in tmp_path.iterdir()] == ["tickets.csv"]

    printed = cli(*flags, "--yes").out
    home = tmp_path / "tickets-tuned"
    words = ("exact match", "run.toml", "1 not used", "mlx-itune chat", "mlx-itune eval", "fuse")
    assert all(word in printed for word in words)
    (run,) = (tmp_path / "runs").iterdir()
    assert "card_lost" in (run / "report.html").read_text()
    cli("train", "--config", home / "run.toml", "--offline")
    one, other = (home / name / "adapters.safetensors" for name in ("adapter", "adapter-again"))
    assert one.read_bytes() == other.read_bytes()

    # A table of the same columns can be scored, too; the line above the scores says how it is read.
    more = ("--adapter", home / "adapter", "--no-generate", "--no-base", "--offline")
    told = cli("eval", "--data", file, *more, code=3).err
    assert "1 broken row" in told
    told = cli("eval", "--data", write_table(tmp_path / "more.csv", TICKETS[:2]), *more).out
    assert "more.csv (instruction = 'text', output = 'category', by their looks): 2 rows" in told

    # A folder with a test split keeps it; nothing is overwritten, the numbers are of held-out rows.
    made = cli.json("tune", home / "data", *flags[2:-1], "--yes")
    assert Path(made["adapter"]).parts[-2:] == ("data-tuned", "adapter")
    assert made["metric"] == "exact_match" and 0 <= made["base_score"] <= made["tuned_score"] <= 1
    lines = {
        part: (home / "data" / f"{part}.jsonl").read_text().count("\n")
        for part in ("train", "valid", "test")
    }
    assert sum(lines.values()) == 60 and made["test_rows"] == lines["test"] >= 3
    assert made["rows_used"] == lines["train"] and made["rows_not_used"] == 0
    assert {"run", "wall_s", "report", "config", "train"} <= made.keys()
    taken = cli("tune", file, *flags[2:], "--yes", "--out", home, code=5).err
    assert "already exists" in taken.splitlines()[-1]


def test_a_folder_of_several_tables_is_said_to_be_one_data_set(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name in ("a", "b"):
        write_table(tmp_path / f"all/{name}.csv", TICKETS[:20])
    told = cli("tune", tmp_path / "all", "--model", "starter", code=2).err
    assert "40 rows of 2 files, as one data set: a.csv, b.csv" in told
    assert "else, say: --map instruction=category --map output=text" in told


JSON_ROWS = [
    {"utterance": row["text"], "label": {"intent": row["category"], "slots": {"n": n}}}
    for n, row in enumerate(TICKETS)
]


def test_answers_that_are_json_are_held_to_their_schema(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in JSON_ROWS))
    flags = ("--model", "starter", "--time", "1s", "--yes", "--out", tmp_path / "made")
    made = cli.json("tune", file, *flags, "--runs", tmp_path / "runs")
    schema = json.loads(Path(made["schema"]).read_text())
    assert schema["required"] == ["intent", "slots"]
    assert made["base_valid_json"] == made["tuned_valid_json"] == 1


ALPACA = [
    {"instruction": f"{row['text']}, please?", "input": "", "output": f"Of course, number {n}."}
    for n, row in enumerate(TICKETS)
]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Name the kind."},
            {"role": "user", "content": row["text"]},
            {"role": "assistant", "content": row["category"]},
        ]
    }
    for row in TICKETS
]


@pytest.mark.parametrize(
    ("write", "rows", "kind", "columns", "system"),
    [
        (
            lambda path, rows: write_sheet(path.with_suffix(".xlsx"), rows),
            [{"Ticket": row["text"], "Kind": row["category"]} for row in TICKETS],
            "labels",
            ["Ticket", "Kind"],
            "Answer with one of: card_lost, refund, greeting.",
        ),
        (
            lambda path, rows: write_lines(path.with_suffix(".jsonl"), rows),
            JSON_ROWS,
            "json",
            ["utterance", "label"],
            "Answer with a JSON object with the keys intent, slots, and nothing else.",
        ),
        (
            lambda path, rows: write_table(path.with_suffix(".csv"), rows),
            [{**row, "label": json.dumps(row["label"])} for row in JSON_ROWS],
            "json",
            ["utterance", "label"],
            "Answer with a JSON object with the keys intent, slots, and nothing else.",
        ),
        (
            lambda path, rows: write_lines(path.with_suffix(".jsonl"), rows),
            CHATS,
            "labels",
            [],
            None,
        ),
        (
            lambda path, rows: (
                path.with_suffix(".json").write_text(json.dumps(rows)) and path.with_suffix(".json")
            ),
            ALPACA,
            "text",
            [],
            None,
        ),
    ],
)
def test_what_people_have_is_read_and_understood(
    tmp_path: Path,
    write: Callable[[Path, Any], Path],
    rows: Any,
    kind: str,
    columns: list[str],
    system: str | None,
) -> None:
    job = decide(write(tmp_path / "rows", rows), model="starter", out=tmp_path / "out")
    assert (job.task.kind, [*job.looked.guessed.values()], job.system) == (
        *(kind, columns),
        system or None,
    )
    assert [*job.task.warnings()] == [] and len(job.looked.rows) == len(rows)
    assert job.shown[0][2].strip() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (TICKETS[:40], ["40 rows teach little"]),
        (
            [{**row, "category": "same"} for row in TICKETS],
            ["all rows have the same answer, 'same'"],
        ),
        (
            [{**row, "category": "one" if n > 2 else "two"} for n, row in enumerate(TICKETS)],
            ["95.0 % of the rows have one answer, 'one'"],
        ),
        (
            [*TICKETS, {**TICKETS[0], "category": "refund"}],
            ["2 rows ask what others answer differently: ", "rows.csv:2", "rows.csv:62"],
        ),
    ],
)
def test_what_will_disappoint_is_said(
    tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    job = decide(write_table(tmp_path / "rows.csv", rows), model="starter", out=tmp_path / "out")
    told = "\n".join(job.task.warnings())
    assert all(word in told for word in words)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"id": n, "text": row["text"]} for n, row in enumerate(TICKETS)],
            "no row has a question",
        ),
        (TICKETS[:9], "9 rows: too few"),
    ],
)
def test_nothing_to_learn_is_one_line(cli: Any, tmp_path: Path, rows: Any, words: str) -> None:
    file = write_table(tmp_path / "rows.csv", rows)
    assert words in cli.refused("tune", file, "--model", "starter", "--yes", code=3)
    with pytest.raises(DataError, match="no such data file"):
        decide(tmp_path / "rows.cvs", model="starter", out=tmp_path / "out")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
