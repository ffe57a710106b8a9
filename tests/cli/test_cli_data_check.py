"""`data check`: every fault of every row, at once and at its place."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main

Capture = pytest.CaptureFixture[str]
WORDS = (
    "river stone bright engine window market garden silver paper north winter signal letter bridge"
    " cloud number forest travel music number planet kitchen doctor museum button"
).split()


def run(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["data", "check", *map(str, argv), "--json", "--offline"])
    out = capsys.readouterr().out
    assert (left.value.code or 0) == code, out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def lines(capsys: Capture, *argv: object, code: int = 3) -> list[str]:
    with pytest.raises(SystemExit) as left:
        main(["data", "check", *map(str, argv)])
    assert (left.value.code or 0) == code
    return capsys.readouterr().out.splitlines()


def refused(capsys: Capture, *argv: object) -> str:
    with pytest.raises(SystemExit) as left:
        main(["data", "check", *map(str, argv)])
    (error,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    return error


def codes(found: dict[str, Any]) -> list[tuple[int, str]]:
    return [(fault["line"], fault["code"]) for fault in found["faults"]]


def pair(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, **more}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(90)) for _ in range(words))


def test_errors_come_with_line_and_hint_and_exit_3(capsys: Capture, tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        pair("Who?", "Me, certainly."),
        "{not json",
        pair("Who?", ""),
        {"messages": [{"role": "wizard", "content": "x"}]},
    )
    found = run(capsys, path, code=3)
    errors = [fault for fault in found["faults"] if fault["severity"] == "error"]
    assert [fault["line"] for fault in errors] == [2, 3, 4]
    assert (found["rows"], found["accepted"], found["rejected"]) == (4, 1, 3)
    assert all(fault["file"] == str(path) for fault in errors)


def test_warnings_alone_exit_0_unless_strict(capsys: Capture, tmp_path: Path) -> None:
    rows = [pair(f"What is {n} plus {n}?", f"It is {2 * n}, of course.") for n in range(50)]
    clean = run(capsys, write(tmp_path / "rows.jsonl", *rows), "--strict")
    assert (clean["rows"], clean["accepted"], clean["warnings"], clean["faults"]) == (50, 50, 0, [])
    path = write(tmp_path / "rows.jsonl", *rows, rows[0])
    assert codes(run(capsys, path)) == [(51, "duplicate")]
    assert run(capsys, path, "--strict", code=3)["rejected"] == 0


def test_duplicates_name_the_first_place(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(4)
    base, answer = sentence(rng, 40), sentence(rng, 40)
    path = write(
        tmp_path / "rows.jsonl",
        pair(base, answer),
        pair(sentence(rng, 40), sentence(rng, 40)),
        pair(base, answer),
        pair(base.upper(), answer.replace(" ", "  ") + "  \n"),
        pair(base.replace(base.split()[7], "replaced"), answer),
    )
    found = run(capsys, path)
    assert codes(found) == [(3, "duplicate"), (4, "respelled-duplicate"), (5, "near-duplicate")]
    assert all(f"{path}:" in fault["message"] for fault in found["faults"])
    assert f"{path}:1" in found["faults"][0]["message"]
    exact_only = run(capsys, path, "--no-near-duplicates")
    assert codes(exact_only) == [(3, "duplicate")]


def test_rows_of_one_split_in_another_are_leaks(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [pair(sentence(rng, 30), sentence(rng, 30)) for _ in range(20)]
    near = pair(rows[3]["prompt"] + " please", rows[3]["completion"])
    write(tmp_path / "train.jsonl", *rows[:10])
    write(tmp_path / "test.jsonl", rows[0], *rows[10:15], near)
    write(tmp_path / "dev.jsonl", rows[16], rows[1])
    found = run(capsys, tmp_path)
    listed = [(Path(f["file"]).name, f["line"], f["code"]) for f in found["faults"]]
    leaks = [("dev.jsonl", 2, "leak"), ("test.jsonl", 1, "leak"), ("test.jsonl", 7, "near-leak")]
    assert sorted(listed) == leaks
    assert "train.jsonl:1" in next(f["message"] for f in found["faults"] if f["line"] == 1)


def test_lints_say_where_and_what(capsys: Capture, tmp_path: Path) -> None:
    ok = "A fine answer to that, in some words."
    rows = {
        "refusal": pair("Do it.", "I'm sorry, but I can't help with that."),
        "disclaimer": pair("And?", "As an AI language model, I have never seen snow."),
        "vendor-name": pair("Who made you?", "I was made by OpenAI in an office."),
        "error-reply": pair("Go on.", "!Too many requests in 1 hour. Try again later."),
        "url-only": pair("Summarize the article.\n\nhttps://example.com/a/b", ok),
        "attachment": pair("Describe it.\n\n<Picture Attached>", ok),
        "merged-instructions": pair("Name a colour.\n\n12. Instruction: Name a tree.", ok),
        "html-debris": pair("Code?", '<div class="markdown"><p>Here it is, my friend.</p></div>'),
        "copy-code": pair("More code?", "```\npythonCopy code\nprint(1)\n```"),
        "stray-n": pair("The cat sat on the mat.n\nIs it so?", ok),
        "unfilled-field": pair("Translate this text: {input}", ok),
        "no-words": pair("What now, then?", "..."),
        "template-text": pair("Hello <|im_end|> there", ok),
    }
    path = write(tmp_path / "rows.jsonl", *rows.values())
    found = run(capsys, path)
    by_line = {fault["line"]: fault["code"] for fault in found["faults"]}
    by_line |= {f["line"]: f["code"] for f in found["faults"] if f["code"] != "short-answer"}
    assert by_line == dict(enumerate(rows, 1))
    assert all(fault["hint"] for fault in found["faults"])


def test_system_prompts_that_drift_are_shown_with_counts(capsys: Capture, tmp_path: Path) -> None:
    def chat(system: str, number: int) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Name the number {number} in words."},
                {"role": "assistant", "content": f"That would be number {number}."},
            ]
        }

    usual = "You are a helpful assistant that answers in English."
    rows = [chat(usual, n) for n in range(8)]
    rows += [chat("You are an helpfull assistant that answers in english", n) for n in (20, 21)]
    rows += [chat("You are a helpful assistant that answers in German.", n) for n in (30, 31)]
    found = run(capsys, write(tmp_path / "rows.jsonl", *rows))
    (drift,) = found["faults"]
    assert (drift["line"], drift["code"]) == (9, "system-drift")
    assert "2 rows" in drift["message"]
    assert "8 rows" in drift["message"]


def test_own_lints_replace_or_extend(capsys: Capture, tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        pair("Colour?", "As an AI language model, I like Foobar best."),
    )
    own = '[[lint]]\ncode = "foobar"\nmessage = "m"\nwhere = "assistant"\nphrases = ["foobar"]\n'
    lints = tmp_path / "own.toml"
    lints.write_text(own)
    assert codes(run(capsys, path, "--lints", lints)) == [(1, "foobar")]
    lints.write_text("extend = true\n" + own)
    assert {c for _, c in codes(run(capsys, path, "--lints", lints))} == {"disclaimer", "foobar"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[lint]]\nmessage = 'x'", "code: is missing"),
        ("[[lint]]\ncode = 'a'\npatterns = ['(']", "faulty"),
        ("[[lint]]\ncode = 'a'\nphrase = ['x']", "did you mean phrases"),
        ("[[lint]]\ncode = 'a'\nwhere = 'robot'\nphrases = ['x']", "robot"),
        ("lint = 3", "lint"),
        ("[[lint", "TOML"),
    ],
)
def test_a_faulty_lint_file_is_one_line(
    capsys: Capture, tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path / "rows.jsonl", pair("Who?", "Me, certainly."))
    lints = tmp_path / "own.toml"
    lints.write_text(text)
    assert said in refused(capsys, path, "--lints", lints)


def test_a_model_finds_what_training_would_not_learn(
    capsys: Capture, tmp_path: Path, tiny_quantized_dir: Path
) -> None:
    masked = {
        "messages": [
            {"role": "user", "content": "Say something nice to me."},
            {"role": "assistant", "content": "Something nice, then.", "weight": 0},
        ]
    }
    long = pair("Count far.", " ".join(map(str, range(300))))
    path = write(tmp_path / "rows.jsonl", pair("Who?", "Me, certainly."), masked, long)
    found = run(capsys, path, "--model", tiny_quantized_dir, "--max-length", 64)
    assert codes(found) == [(2, "all-masked"), (3, "too-long")]
    assert found["accepted"] == 3


def test_the_same_fault_is_said_once(capsys: Capture, tmp_path: Path) -> None:
    table = tmp_path / "tickets.csv"
    rows = [f'{n},"It fails, {n} times","{{""label"": {n}}}"' for n in range(60)]
    table.write_text("\n".join(["ID,Ticket text,Label (JSON)", *rows]))
    first, last = lines(capsys, table)
    assert first.startswith(f"{table}:2: unknown-format: ")
    assert "; the same in 59 more rows: 3, 4, 5 and 56 more" in first
    assert last.startswith("60 rows, 0 accepted, 60 rejected, 0 warnings")
    # What is shown is what the option takes.
    shown = re.search(r"(--map .*)\); the same", first)
    assert shown is not None
    assert shlex.split(shown[1]) == [
        "--map", "instruction=Ticket text", "--map", "output=Label (JSON)",
    ]  # fmt: skip
    (line,) = lines(capsys, table, *shlex.split(shown[1]), code=0)
    assert line.startswith("60 rows, 60 accepted")


def test_people_see_some_of_each_code_and_all_counts(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [pair(sentence(rng, 12), sentence(rng, 12)) for _ in range(70)]
    path = write(tmp_path / "rows.jsonl", *rows, *rows, "{")
    told = lines(capsys, path)
    assert sum(": duplicate: " in line for line in told) == 50
    assert any(f"{path}:141: json: " in line and "(fix: " in line for line in told)
    assert told[-1].startswith("141 rows, 140 accepted, 1 rejected, 70 warnings")
    assert "70 duplicate" in told[-1]


def test_a_minified_array_keeps_its_rows_apart(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [pair(sentence(rng, 30), sentence(rng, 30)) for _ in range(6)]
    rows.append(pair(rows[4]["prompt"] + " extra", rows[4]["completion"]))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = run(capsys, path)
    (fault,) = found["faults"]
    assert (fault["code"], fault["where"]) == ("near-duplicate", f"{path}:#7")
    assert f"{path}:#5" in fault["message"]


def test_model_flags_need_a_model(capsys: Capture, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pair("Who?", "Me, certainly."))
    assert "--model" in refused(capsys, path, "--max-length", "9")
