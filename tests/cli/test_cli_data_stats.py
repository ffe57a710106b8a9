"""`data stats` from the command line: a table, one JSON object, and a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main

Capture = pytest.CaptureFixture[str]

DISTRIBUTION = {
    "count", "sum", "mean", "min", "p5", "p50", "p90", "p95", "p99", "max", "error", "histogram",
}  # fmt: skip


def run(*argv: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as left:
        main(["data", "stats", *map(str, argv)])
    assert (left.value.code or 0) == code


def result(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    """The one JSON object that `data stats` prints."""
    run(*argv, "--json", "--offline", code=code)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 40), ("valid", 5)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for n in range(count):
                row = {
                    "messages": [
                        {"role": "user", "content": f"Case {n}: " + "word " * n},
                        {"role": "assistant", "content": "yes " * (n % 4 + 1)},
                    ],
                    "source": ("clinic", "lab")[n % 2],
                }
                file.write(json.dumps(row) + "\n")
    return folder


def test_the_keys_that_scripts_rely_on(capsys: Capture, data: Path) -> None:
    found = result(capsys, data)
    assert found.keys() == {
        "data", "html", "rows", "rejected", "faults", "splits", "turns", "roles", "sources",
        "tasks", "tags", "scripts", "tools", "system", "weights", "tokens",
    }  # fmt: skip
    assert (found["rows"], found["rejected"], found["tokens"]) == (45, 0, None)
    assert {name: split["rows"] for name, split in found["splits"].items()} == {
        "train": 40,
        "valid": 5,
    }
    assert found["turns"].keys() == DISTRIBUTION
    assert found["turns"]["histogram"].keys() == {"edges", "counts", "beyond"}
    assert found["roles"]["user"].keys() == {"turns", "share", "characters", "words"}
    top = {item["name"]: item["amounts"] for item in found["sources"]["top"]}
    assert {name: amounts[0] for name, amounts in top.items()} == {"clinic": 23, "lab": 22}
    assert found["scripts"] == {"Latin": 45}


def test_with_a_model_tokens_are_counted(capsys: Capture, data: Path) -> None:
    tokens = result(capsys, data, "--model", "starter", "--max-length", 40)["tokens"]
    assert tokens.keys() == {
        "template", "learn", "total", "supervised", "supervised_share", "examples", "per_row",
        "per_example", "supervised_per_row", "share_percent", "over", "limit", "padding",
        "control_text_rows", "nothing_to_learn_rows", "refused_rows", "refused",
    }  # fmt: skip
    assert tokens["per_row"].keys() == DISTRIBUTION
    assert tokens["per_row"]["count"] == 45
    assert tokens["supervised"] == tokens["supervised_per_row"]["sum"] > 0
    assert tokens["limit"]["tokens"] == 40 and 0 < tokens["limit"]["rows_over"] < 45
    assert list(tokens["over"]) == ["512", "1024", "2048", "4096", "8192", "16384", "32768"]


def test_a_table_for_people(capsys: Capture, data: Path) -> None:
    run(data, "--model", "starter", "--max-length", 40)
    out = capsys.readouterr().out
    for wanted in ("tokens per row", "learned tokens", "clinic", "over 40 tokens", "Latin", "p95"):
        assert wanted in out


def test_names_out_of_data_stay_names(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    source = "[red]\x1b[2J\u202ename[/red]"
    row = {"question": "q", "answer": "a", "source": source, "system": source}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    run(file)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out
    assert "[red]\\x1b[2J\\u202ename[/red]" in out


class Headings(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        assert tag not in ("script", "img", "link")
        assert not {name for name, _ in attrs} & {"src", "href", "style"}


def test_a_page_with_plots(capsys: Capture, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "stats.html"
    run(data, "--model", "starter", "--html", page)
    assert capsys.readouterr().out.endswith(f"plots: {page}\n")
    document = page.read_text(encoding="utf-8")
    reader = Headings()
    reader.feed(document)
    assert reader.charts >= 8
    assert str(tmp_path) not in document
    other = tmp_path / "other.html"
    assert result(capsys, data, "--html", other)["html"] == str(other)
    assert result(capsys, data, "--html", page, code=5)["error"]["where"] == str(page)


def test_broken_rows_are_counted_and_nothing_but_broken_rows_is_an_error(
    capsys: Capture, data: Path, tmp_path: Path
) -> None:
    with (data / "train.jsonl").open("a") as file:
        file.write("not json\n")
    found = result(capsys, data)
    assert (found["rows"], found["rejected"]) == (45, 1)
    assert "json" in found["faults"][0]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("not json\n")
    assert result(capsys, broken, code=3)["error"]["exit_code"] == 3
    assert result(capsys, tmp_path / "none.jsonl", code=3)["error"]


def test_flags_that_count_tokens_need_a_model(capsys: Capture, data: Path) -> None:
    failed = result(capsys, data, "--max-length", 100, code=2)
    assert failed["error"]["hint"] == "give --model too"


def test_several_files_and_a_mapping(capsys: Capture, tmp_path: Path) -> None:
    table = tmp_path / "notes.csv"
    table.write_text("frage,antwort\nWie?,So.\nWann?,Nie.\n", encoding="utf-8")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"frage": "a", "antwort": "b"}\n', encoding="utf-8")
    found = result(capsys, table, lines, "--map", "question=frage", "--map", "answer=antwort")
    assert {name: split["rows"] for name, split in found["splits"].items()} == {
        "notes.csv": 2,
        "rows.jsonl": 1,
    }
