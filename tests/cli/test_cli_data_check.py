"""`data check`: every fault of every row, at once and at its place."""

from __future__ import annotations

import json
import random
import re
import shlex
from collections import Counter
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


def test_clean_rows_have_no_fault(capsys: Capture, tmp_path: Path) -> None:
    rows = [pair(f"What is {n} plus {n}?", f"It is {2 * n}, of course.") for n in range(50)]
    found = run(capsys, write(tmp_path / "rows.jsonl", *rows))
    assert found["faults"] == []
    assert (found["rows"], found["accepted"], found["rejected"], found["warnings"]) == (
        50,
        50,
        0,
        0,
    )


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
    row = pair("Tell me something about the sea.", "It is wide and salty and deep.")
    path = write(tmp_path / "rows.jsonl", row, row)
    assert codes(run(capsys, path)) == [(2, "duplicate")]
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
    assert codes(found) == [
        (3, "duplicate"),
        (4, "respelled-duplicate"),
        (5, "near-duplicate"),
    ]
    assert all(f"{path}:" in fault["message"] for fault in found["faults"])
    assert f"{path}:1" in found["faults"][0]["message"]
    exact_only = run(capsys, path, "--no-near-duplicates")
    assert codes(exact_only) == [(3, "duplicate")]


def test_rows_of_one_template_are_no_duplicates(capsys: Capture, tmp_path: Path) -> None:
    asked = (
        "Read the review below and decide whether the customer is happy. Answer with the single "
        "word positive or negative, in lower case, without any explanation.\n\nReview: "
    )
    rng = random.Random(1)
    rows = [pair(asked + sentence(rng, 6), rng.choice(("positive", "negative"))) for _ in range(60)]
    numbers = [
        pair(
            f"A train takes {n} hours for the whole way there. How long do two such trains"
            f" take one after the other?",
            f"They take {2 * n} hours.",
        )
        for n in range(2, 40)
    ]
    found = run(capsys, write(tmp_path / "rows.jsonl", *rows, *numbers))
    assert Counter(code for _, code in codes(found)) == {}


def test_rows_of_one_split_in_another_are_leaks(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [pair(sentence(rng, 30), sentence(rng, 30)) for _ in range(20)]
    near = pair(rows[3]["prompt"] + " please", rows[3]["completion"])
    write(tmp_path / "train.jsonl", *rows[:10])
    write(tmp_path / "test.jsonl", rows[0], *rows[10:15], near)
    write(tmp_path / "dev.jsonl", rows[16], rows[1])
    found = run(capsys, tmp_path)
    listed = [(Path(f["file"]).name, f["line"], f["code"]) for f in found["faults"]]
    assert sorted(listed) == [
        ("dev.jsonl", 2, "leak"),
        ("test.jsonl", 1, "leak"),
        ("test.jsonl", 7, "near-leak"),
    ]
    assert "train.jsonl:1" in next(f["message"] for f in found["faults"] if f["line"] == 1)


def test_lints_say_where_and_what(capsys: Capture, tmp_path: Path) -> None:
    ok = "A fine answer to that, in some words."
    rows = {
        "refusal": pair("Do it.", "I'm sorry, but I can't help with that."),
        "disclaimer": pair("And?", "As an AI language model, I have never seen snow."),
        "vendor-name": pair("Who made you?", "I was made by OpenAI in an office."),
        "error-reply": pair("Go on.", "!Too many requests in 1 hour. Try again later."),
        "url-only": {
            "instruction": "Summarize the article.",
            "input": "https://example.com/a/b",
            "output": ok,
        },
        "attachment": {"instruction": "Describe it.", "input": "<Picture Attached>", "output": ok},
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


def test_every_control_string_is_seen(capsys: Capture, tmp_path: Path) -> None:
    strings = (
        "<|im_start|> <|im_end|> [INST] [/INST] <<SYS>> <s> </s> <|start_header_id|> <|eot_id|>"
        " <|begin_of_text|> <start_of_turn> <end_of_turn> <|user|> <|assistant|> <|end|>"
        " <|endoftext|>"
    ).split()
    strings += ["### Instruction:", "### Response:", "a USER: b ASSISTANT: c"]
    rows = [
        pair(f"Question {n} with {text} inside", f"Answer {n} {text * (n % 2)}, said in words.")
        for n, text in enumerate(strings)
    ]
    found = run(capsys, write(tmp_path / "rows.jsonl", *rows))
    marked = {line for line, code in codes(found) if code == "template-text"}
    assert marked == set(range(1, len(strings) + 1))


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
    with pytest.raises(SystemExit) as left:
        main(["data", "check", str(path), "--lints", str(lints)])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


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


def lines(capsys: Capture, *argv: object, code: int = 3) -> list[str]:
    with pytest.raises(SystemExit) as left:
        main(["data", "check", *map(str, argv)])
    assert left.value.code == code
    return capsys.readouterr().out.splitlines()


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
    with pytest.raises(SystemExit) as left:
        main(["data", "check", str(path), "--max-length", "9"])
    assert left.value.code == 2
    assert "--model" in capsys.readouterr().err
