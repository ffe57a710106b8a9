"""`data show`: what is learned can be seen, of any row, without reading more than is needed."""

import json
from functools import partial

import pytest

from mlx_itune.dataset import sources
from mlx_itune.dataset.importing.provenance import row_id

FLAGS = ("data", "show", "--model", "starter")


@pytest.fixture
def show(cli):
    return partial(cli, *FLAGS)


@pytest.fixture
def result(cli):
    return partial(cli.json, *FLAGS)


def learned(row):
    return "".join(token["text"] for token in row["tokens"] if token["weight"] > 0).strip()


def asked(question, *answers, weights=(), **extra):
    turns = []
    for n, answer in enumerate(answers):
        reply = {"role": "assistant", "content": answer}
        turns += [{"role": "user", "content": "And?" if n else question}, reply]
        if weights:
            reply["weight"] = weights[n]
    return {"messages": turns, **extra}


@pytest.fixture
def data(run):
    for split, first in (("train", 0), ("valid", 50), ("test", 70)):
        rows = (asked(f"Case {first + n}?", f"- {split} {n}", id=f"{split}:{n}") for n in range(9))
        run.write(f"data/{split}.jsonl", rows)
    return run.home / "data"


def test_the_first_rows_under_the_keys_that_scripts_rely_on(result, data, run, monkeypatch):
    shown = result(data, "--rows", 2)
    assert shown.keys() == {"rows", "skipped", "told", "html", "notes"}
    assert [row["row"] for row in shown["rows"]] == [f"{data / 'train.jsonl'}:{n}" for n in (1, 2)]
    row = shown["rows"][0]
    assert row.keys() == {"row", "tokens", "learned", "example", "examples", "notes"}
    assert row["tokens"][0].keys() == {"id", "text", "weight"}
    assert learned(row) == "- train 0<|end|>"
    assert row["learned"] == sum(token["weight"] > 0 for token in row["tokens"])

    real, seen = sources.read_rows, []

    def counting(*args, **options):
        for row in real(*args, **options):
            seen.append(row)
            yield row

    monkeypatch.setattr(sources, "read_rows", counting)
    file = run.write("big.jsonl", (asked(f"q{n}", "a") for n in range(2_000)))
    assert len(result(file, "--rows", 3)["rows"]) == len(seen) == 3, "read no further"
    seen.clear()
    result(file, "--row", f"{file}:40")
    assert len(seen) <= 41


@pytest.mark.parametrize(
    ("specs", "answers"),
    [
        (["test:3"], ["test 2"]),
        (["valid.jsonl:2"], ["valid 1"]),
        (["4"], ["train 3"]),
        (["test:0"], ["test 0"]),
        (["test:1", "HASH"], ["train 1", "test 0"]),
    ],
)
def test_rows_by_place_or_id_in_file_order(result, data, specs, answers):
    rows = list(sources.read_rows(data / "train.jsonl"))
    flags = [flag for spec in specs for flag in ("--row", spec.replace("HASH", row_id(rows[1])))]
    assert [learned(row) for row in result(data, *flags)["rows"]] == [
        f"- {answer}<|end|>" for answer in answers
    ]
    assert "no row 'train:99'" in result(data, "--row", "train:99", code=2)["message"]


def test_rows_of_one_line_have_numbers(result, run):
    file = run.write("rows.json", [json.dumps([asked("q", answer) for answer in "abc"])])
    for spec in ("#2", "rows:#2"):
        (row,) = result(file, "--row", spec)["rows"]
        assert (row["row"], learned(row)) == (f"{file}:#2", "b<|end|>")


def test_broken_rows_are_named_and_stepped_over(show, result, run):
    file = run.write("rows.jsonl", ["not json", asked("q", "a"), asked("r", "b")])
    told = show(file, "--rows", 1)
    assert "[[ a<|end|>]]" in told.out
    assert f"left out: {file}:1: json" in told.err
    assert result(file, "--row", "rows:1", code=3)["where"] == f"{file}:1"
    assert [entry["row"] for entry in result(file)["skipped"]] == [f"{file}:1"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([], "holds no rows"), (["{"], "json: "), ([asked("q", "word " * 99)], "do not fit")],
)
def test_nothing_to_show_is_an_error(result, run, rows, reason):
    file = run.write("rows.jsonl", rows)
    flags = ("--max-length", 20, "--too-long", "drop")
    assert reason in result(file, *flags, code=3)["message"]


def test_a_long_row_is_cut_and_each_part_says_why(show, result, run):
    row = asked("word " * 9, *(f"answer {n}" for n in range(6)))
    flags = (run.write("rows.jsonl", [row]), "--template", "chatml", "--max-length", 90)
    shown = result(*flags)["rows"]
    assert len(shown) > 1
    assert [row["example"] for row in shown] == list(range(1, len(shown) + 1))
    assert all("cut between exchanges" in row["notes"][0] for row in shown)
    out = show(*flags).out
    assert f"example 1 of {len(shown)}" in out and "note: cut between exchanges" in out
    show(*flags, "--too-long", "error", code=3)


def test_without_colour_learned_runs_stand_in_brackets_with_their_weights(show, result, run):
    row = asked("q", "half", "twice", "whole", weights=(0.5, 2, 1))
    file = run.write("rows.jsonl", [row])
    out = show(file, "--template", "chatml").out
    assert "[[0.5: half" in out and "[[2: twice" in out and "[[whole" in out
    assert "tokens learned" in out.splitlines()[0] and "\x1b" not in out
    assert learned(result(file, "--learn", "last")["rows"][0]) == "whole<|end|>"


def test_colour_and_borders_in_a_terminal(show, data, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = show(data, "--rows", 1).out
    assert "\x1b[1;32m·- train 0\x1b[0m" in out, "learned: bold green, the border's space visible"
    assert "\x1b[1;7;32m<|end|>\x1b[0m" in out, "a control token is inverse"
    assert "[[" not in out
    assert "│" in show(data, "--rows", 1, "--tokens").out


HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202eright to left\u202c \r overwritten [bold]not markup[/bold]"


@pytest.mark.parametrize("colour", ["1", ""])
def test_data_cannot_drive_the_terminal(show, run, colour, monkeypatch):
    if colour:
        monkeypatch.setenv("FORCE_COLOR", colour)
    out = show(run.write("rows.jsonl", [asked(HOSTILE, HOSTILE)])).out
    assert "\x1b[2J" not in out and "\x1b]0" not in out
    assert not set("\x07\r\u202e\u202c") & set(out)
    assert "\\x1b[2J" in out and "\\u202e" in out and "[bold]not markup[/bold]" in out


def test_a_page_instead(show, result, data, run):
    out = run.home / "tokens.html"
    assert show(data, "--rows", 2, "--html", out).out == f"{out}: 2 examples\n"
    document = out.read_text(encoding="utf-8")
    assert document.startswith("<!DOCTYPE html>")
    assert str(run.home) not in document, "a page that is passed on tells no path of this machine"
    assert result(data, "--html", out, code=5)["where"] == str(out), "nothing is overwritten"
    assert ".html" in result(data, "--html", data / "train.jsonl", code=2)["hint"]
