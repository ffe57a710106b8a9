"""`data stats` from the command line: a table, one JSON object, and a page."""

import pytest

DISTRIBUTION = {
    "count", "sum", "mean", "min", "p5", "p50", "p90", "p95", "p99", "max", "error", "histogram",
}  # fmt: skip


@pytest.fixture
def folder(run):
    for split, count in (("train", 40), ("valid", 5)):
        rows = (
            {
                "question": f"Case {n}: " + "word " * n,
                "answer": "yes " * (n % 4 + 1),
                "source": ("clinic", "lab")[n % 2],
            }
            for n in range(count)
        )
        run.write(f"data/{split}.jsonl", rows)
    return run.home / "data"


def test_the_keys_that_scripts_rely_on(run, folder):
    with (folder / "train.jsonl").open("a") as file:
        file.write("not json\n")
    found = run("stats", folder)
    assert found.keys() == {
        "data", "html", "rows", "rejected", "faults", "splits", "turns", "roles", "sources",
        "tasks", "tags", "scripts", "tools", "system", "weights", "tokens",
    }  # fmt: skip
    assert (found["rows"], found["rejected"], found["tokens"]) == (45, 1, None)
    assert "json" in found["faults"][0]
    rows = {name: split["rows"] for name, split in found["splits"].items()}
    assert rows == {"train": 40, "valid": 5}
    assert found["turns"].keys() == DISTRIBUTION
    assert found["turns"]["histogram"].keys() == {"edges", "counts", "beyond"}
    assert found["roles"]["user"].keys() == {"turns", "share", "characters", "words"}
    top = {item["name"]: item["amounts"][0] for item in found["sources"]["top"]}
    assert top == {"clinic": 23, "lab": 22} and found["scripts"] == {"Latin": 45}
    tokens = run("stats", folder, "--model", "starter", "--max-length", 40)["tokens"]
    assert tokens.keys() == {
        "template", "learn", "total", "supervised", "supervised_share", "examples", "per_row",
        "per_example", "supervised_per_row", "share_percent", "over", "limit", "padding",
        "control_text_rows", "nothing_to_learn_rows", "refused_rows", "refused",
    }  # fmt: skip
    assert tokens["per_row"].keys() == DISTRIBUTION and tokens["per_row"]["count"] == 45
    assert tokens["supervised"] == tokens["supervised_per_row"]["sum"] > 0
    assert tokens["limit"]["tokens"] == 40 and 0 < tokens["limit"]["rows_over"] < 45
    assert list(tokens["over"]) == ["512", "1024", "2048", "4096", "8192", "16384", "32768"]
    error = run("stats", folder, "--max-length", 100, code=2)["error"]
    assert error["hint"] == "give --model too"


def test_tables_for_people_and_a_page_with_plots(run, folder):
    page = run.home / "stats.html"
    out = run.told("stats", folder, "--model", "starter", "--max-length", 40, "--html", page)
    for wanted in ("tokens per row", "learned tokens", "clinic", "over 40 tokens", "Latin", "p95"):
        assert wanted in out
    assert f"plots: {page}\n" in out
    document = page.read_text(encoding="utf-8")
    assert document.count("<svg") >= 8 and str(run.home) not in document
    assert run("stats", folder, "--html", page, code=5)["error"]["where"] == str(page)


def test_several_files_a_mapping_and_names_that_stay_names(run):
    table = run.home / "notes.csv"
    table.write_text("frage,antwort\nWie?,So.\nWann?,Nie.\n", encoding="utf-8")
    source = "[red]\x1b[2J\u202ename[/red]"
    lines = run.write("rows.jsonl", [{"frage": "a", "antwort": "b", "source": source}])
    flags = ("--map", "question=frage", "--map", "answer=antwort")
    found = run("stats", table, lines, *flags)
    rows = {name: split["rows"] for name, split in found["splits"].items()}
    assert rows == {"notes.csv": 2, "rows.jsonl": 1}
    out = run.told("stats", table, lines, *flags)
    assert "\x1b" not in out and "\u202e" not in out
    assert "[red]\\x1b[2J\\u202ename[/red]" in out
    lines.write_text("not json\n")
    for nothing in (lines, run.home / "none.jsonl"):
        run("stats", nothing, code=3)
