"""`data stats` from the command line: a table, one JSON object, and a page."""

import json
from functools import partial

import pytest

DISTRIBUTION = {
    "count", "sum", "mean", "min", "p5", "p50", "p90", "p95", "p99", "max", "error", "histogram",
}  # fmt: skip


@pytest.fixture
def result(cli):
    return partial(cli.json, "data", "stats")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 40), ("valid", 5)):
        rows = (
            {
                "messages": [
                    {"role": "user", "content": f"Case {n}: " + "word " * n},
                    {"role": "assistant", "content": "yes " * (n % 4 + 1)},
                ],
                "source": ("clinic", "lab")[n % 2],
            }
            for n in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_keys_that_scripts_rely_on(result, data):
    found = result(data)
    assert found.keys() == {
        "data", "html", "rows", "rejected", "faults", "splits", "turns", "roles", "sources",
        "tasks", "tags", "scripts", "tools", "system", "weights", "tokens",
    }  # fmt: skip
    assert (found["rows"], found["rejected"], found["tokens"]) == (45, 0, None)
    rows = {name: split["rows"] for name, split in found["splits"].items()}
    assert rows == {"train": 40, "valid": 5}
    assert found["turns"].keys() == DISTRIBUTION
    assert found["turns"]["histogram"].keys() == {"edges", "counts", "beyond"}
    assert found["roles"]["user"].keys() == {"turns", "share", "characters", "words"}
    top = {item["name"]: item["amounts"][0] for item in found["sources"]["top"]}
    assert top == {"clinic": 23, "lab": 22} and found["scripts"] == {"Latin": 45}


def test_with_a_model_tokens_are_counted(result, data):
    tokens = result(data, "--model", "starter", "--max-length", 40)["tokens"]
    assert tokens.keys() == {
        "template", "learn", "total", "supervised", "supervised_share", "examples", "per_row",
        "per_example", "supervised_per_row", "share_percent", "over", "limit", "padding",
        "control_text_rows", "nothing_to_learn_rows", "refused_rows", "refused",
    }  # fmt: skip
    assert tokens["per_row"].keys() == DISTRIBUTION and tokens["per_row"]["count"] == 45
    assert tokens["supervised"] == tokens["supervised_per_row"]["sum"] > 0
    assert tokens["limit"]["tokens"] == 40 and 0 < tokens["limit"]["rows_over"] < 45
    assert list(tokens["over"]) == ["512", "1024", "2048", "4096", "8192", "16384", "32768"]
    assert result(data, "--max-length", 100, code=2)["hint"] == "give --model too"


def test_tables_for_people_and_a_page_with_plots(cli, result, data, tmp_path):
    page = tmp_path / "stats.html"
    flags = ("--model", "starter", "--max-length", 40, "--html", page)
    out = cli("data", "stats", data, *flags).out
    for wanted in ("tokens per row", "learned tokens", "clinic", "over 40 tokens", "Latin", "p95"):
        assert wanted in out
    assert out.endswith(f"plots: {page}\n")
    document = page.read_text(encoding="utf-8")
    assert document.count("<svg") >= 8 and str(tmp_path) not in document
    other = tmp_path / "other.html"
    assert result(data, "--html", other)["html"] == str(other)
    assert result(data, "--html", page, code=5)["where"] == str(page)


def test_names_out_of_data_stay_names(cli, tmp_path):
    file = tmp_path / "rows.jsonl"
    source = "[red]\x1b[2J\u202ename[/red]"
    file.write_text(json.dumps({"question": "q", "answer": "a", "source": source}) + "\n")
    out = cli("data", "stats", file).out
    assert "\x1b" not in out and "\u202e" not in out
    assert "[red]\\x1b[2J\\u202ename[/red]" in out


def test_broken_rows_are_counted_and_nothing_but_broken_rows_is_an_error(result, data, tmp_path):
    with (data / "train.jsonl").open("a") as file:
        file.write("not json\n")
    found = result(data)
    assert (found["rows"], found["rejected"]) == (45, 1) and "json" in found["faults"][0]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("not json\n")
    assert result(broken, code=3) and result(tmp_path / "none.jsonl", code=3)


def test_several_files_and_a_mapping(result, tmp_path):
    table = tmp_path / "notes.csv"
    table.write_text("frage,antwort\nWie?,So.\nWann?,Nie.\n", encoding="utf-8")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"frage": "a", "antwort": "b"}\n', encoding="utf-8")
    found = result(table, lines, "--map", "question=frage", "--map", "answer=antwort")
    rows = {name: split["rows"] for name, split in found["splits"].items()}
    assert rows == {"notes.csv": 2, "rows.jsonl": 1}
