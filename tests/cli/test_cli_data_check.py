"""`data check`: every fault of every row, at once and at its place."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

from tests.cli.conftest import sentence

OK = "A fine answer to that, in some words."


def check(cli: Any, *argv: object, code: int = 0) -> dict[str, Any]:
    out = cli("data", "check", *argv, "--json", code=code).out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def codes(found: dict[str, Any]) -> list[tuple[int, str]]:
    return [(fault["line"], fault["code"]) for fault in found["faults"]]


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def chat(system: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    said = {"system": system, "user": question, "assistant": answer}
    turns: list[Any] = [{"role": role, "content": text} for role, text in said.items() if text]
    turns[-1] |= more
    return {"messages": turns}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_errors_come_with_their_line_and_exit_3_and_warnings_if_strict(
    cli: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    broken = "{not json", pair("Who?", ""), {"messages": [{"role": "wizard", "content": "x"}]}
    found = check(cli, write(path, pair("Who?", "Me, certainly."), *broken), code=3)
    errors = [fault for fault in found["faults"] if fault["severity"] == "error"]
    assert [(fault["file"], fault["line"]) for fault in errors] == [
        (str(path), n) for n in (2, 3, 4)
    ]
    assert (found["rows"], found["accepted"], found["rejected"]) == (4, 1, 3)
    rows = [pair(f"What is {n} plus {n}?", f"It is {2 * n}, of course.") for n in range(50)]
    clean = check(cli, write(path, *rows), "--strict")
    assert (clean["rows"], clean["accepted"], clean["warnings"], clean["faults"]) == (50, 50, 0, [])
    assert codes(check(cli, write(path, *rows, rows[0]))) == [(51, "duplicate")]
    assert check(cli, path, "--strict", code=3)["rejected"] == 0


def test_duplicates_name_the_first_place(cli: Any, tmp_path: Path) -> None:
    rng = random.Random(4)
    base, answer = sentence(rng, 40), sentence(rng, 40)
    rows = [
        pair(base, answer),
        pair(sentence(rng, 40), sentence(rng, 40)),
        pair(base, answer),
        pair(base.upper(), answer.replace(" ", "  ") + "  \n"),
        pair(base.replace(base.split()[7], "replaced"), answer),
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    found = check(cli, path)
    assert codes(found) == [(3, "duplicate"), (4, "respelled-duplicate"), (5, "near-duplicate")]
    assert all(f"{path}:1" in fault["message"] for fault in found["faults"])
    assert codes(check(cli, path, "--no-near-duplicates")) == [(3, "duplicate")]
    # A minified array keeps its rows apart.
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([rows[1], rows[0], rows[4]]))
    (fault,) = check(cli, path)["faults"]
    assert (fault["code"], fault["where"]) == ("near-duplicate", f"{path}:#3")
    assert f"{path}:#2" in fault["message"]


def test_rows_of_one_split_in_another_are_leaks(cli: Any, tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [pair(sentence(rng, 30), sentence(rng, 30)) for _ in range(20)]
    near = pair(rows[3]["prompt"] + " please", rows[3]["completion"])
    write(tmp_path / "train.jsonl", *rows[:10])
    write(tmp_path / "test.jsonl", rows[0], *rows[10:15], near)
    write(tmp_path / "dev.jsonl", rows[16], rows[1])
    faults = check(cli, tmp_path)["faults"]
    assert sorted((Path(f["file"]).name, f["line"], f["code"]) for f in faults) == [
        ("dev.jsonl", 2, "leak"), ("test.jsonl", 1, "leak"), ("test.jsonl", 7, "near-leak"),
    ]  # fmt: skip
    assert "train.jsonl:1" in next(f["message"] for f in faults if f["line"] == 1)


def test_lints_say_where_and_what(cli: Any, tmp_path: Path) -> None:
    rows = {
        "refusal": pair("Do it.", "I'm sorry, but I can't help with that."),
        "disclaimer": pair("And?", "As an AI language model, I have never seen snow."),
        "vendor-name": pair("Who made you?", "I was made by OpenAI in an office."),
        "error-reply": pair("Go on.", "!Too many requests in 1 hour. Try again later."),
        "url-only": pair("Summarize the article.\n\nhttps://example.com/a/b", OK),
        "attachment": pair("Describe it.\n\n<Picture Attached>", OK),
        "merged-instructions": pair("Name a colour.\n\n12. Instruction: Name a tree.", OK),
        "html-debris": pair("Code?", '<div class="markdown"><p>Here it is, my friend.</p></div>'),
        "copy-code": pair("More code?", "```\npythonCopy code\nprint(1)\n```"),
        "stray-n": pair("The cat sat on the mat.n\nIs it so?", OK),
        "unfilled-field": pair("Translate this text: {input}", OK),
        "no-words": pair("What now, then?", "..."),
        "template-text": pair("Hello <|im_end|> there", OK),
    }
    usual = "You are a helpful assistant that answers in English."
    spelled = "You are an helpfull assistant that answers in english"
    systems = (
        chat(system, f"Name the number {n} in words.", f"That would be number {n}.")
        for n, system in enumerate([usual, usual, spelled])
    )
    faults = check(cli, write(tmp_path / "rows.jsonl", *rows.values(), *systems))["faults"]
    by_line = {f["line"]: f["code"] for f in faults if f["code"] != "short-answer"}
    assert by_line == {**dict(enumerate(rows, 1)), len(rows) + 3: "system-drift"}
    assert all(fault["hint"] for fault in faults)


def test_own_lints_replace_or_extend(cli: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pair("Colour?", "As an AI language model, I am Foobar."))
    own = '[[lint]]\ncode = "foobar"\nmessage = "m"\nwhere = "assistant"\nphrases = ["foobar"]\n'
    lints = tmp_path / "own.toml"
    lints.write_text(own)
    assert codes(check(cli, path, "--lints", lints)) == [(1, "foobar")]
    lints.write_text("extend = true\n" + own)
    assert {c for _, c in codes(check(cli, path, "--lints", lints))} == {"disclaimer", "foobar"}
    for text, said in (
        ("[[lint]]\nmessage = 'x'", "code: is missing"),
        ("[[lint]]\ncode = 'a'\npatterns = ['(']", "faulty"),
        ("[[lint]]\ncode = 'a'\nphrase = ['x']", "did you mean phrases"),
        ("[[lint]]\ncode = 'a'\nwhere = 'robot'\nphrases = ['x']", "robot"),
        ("lint = 3", "lint"),
        ("[[lint", "TOML"),
    ):
        lints.write_text(text)
        (error,) = cli("data", "check", path, "--lints", lints, code=2).err.splitlines()
        assert said in error


def test_a_model_finds_what_training_would_not_learn(
    cli: Any, tmp_path: Path, tiny_quantized_dir: Path
) -> None:
    masked = chat("", "Say something nice to me.", "Something nice, then.", weight=0)
    long = pair("Count far.", " ".join(map(str, range(300))))
    path = write(tmp_path / "rows.jsonl", pair("Who?", "Me, certainly."), masked, long)
    found = check(cli, path, "--model", tiny_quantized_dir, "--max-length", 64)
    assert codes(found) == [(2, "all-masked"), (3, "too-long")]
    assert found["accepted"] == 3
    assert "--model" in cli("data", "check", path, "--max-length", 9, code=2).err


def test_people_see_the_same_fault_once_and_how_to_map_columns(cli: Any, tmp_path: Path) -> None:
    table = tmp_path / "tickets.csv"
    rows = [f'{n},"It fails, {n} times","{{""label"": {n}}}"' for n in range(60)]
    table.write_text("\n".join(["ID,Ticket text,Label (JSON)", *rows]))
    first, last = cli("data", "check", table, code=3).out.splitlines()
    assert first.startswith(f"{table}:2: unknown-format: ")
    assert "; the same in 59 more rows: 3, 4, 5 and 56 more" in first
    assert last.startswith("60 rows, 0 accepted, 60 rejected, 0 warnings")
    # What is shown is what the option takes.
    shown = re.search(r"(--map .*)\); the same", first)
    assert shown is not None
    options = shlex.split(shown[1])
    assert options == ["--map", "instruction=Ticket text", "--map", "output=Label (JSON)"]
    assert cli("data", "check", table, *options).out.startswith("60 rows, 60 accepted")


def test_people_see_some_of_each_code_and_all_counts(cli: Any, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [pair(sentence(rng, 12), sentence(rng, 12)) for _ in range(70)]
    path = write(tmp_path / "rows.jsonl", *rows, *rows, "{")
    told = cli("data", "check", path, code=3).out.splitlines()
    assert sum(": duplicate: " in line for line in told) == 50
    assert any(f"{path}:141: json: " in line and "(fix: " in line for line in told)
    assert told[-1].startswith("141 rows, 140 accepted, 1 rejected, 70 warnings")
    assert "70 duplicate" in told[-1]
