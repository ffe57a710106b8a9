"""`data check`: every fault of every row, at once and at its place."""

import json
import random
import re
import shlex
from pathlib import Path

from tests.cli.conftest import sentence

OK = "A fine answer to that, in some words."


def codes(found):
    return [(fault["line"], fault["code"]) for fault in found["faults"]]


def pair(question, answer):
    return {"prompt": question, "completion": answer}


def chat(system, question, answer, **more):
    said = {"system": system, "user": question, "assistant": answer}
    turns = [{"role": role, "content": text} for role, text in said.items() if text]
    turns[-1] |= more
    return {"messages": turns}


def test_errors_come_with_their_line_and_exit_3_and_warnings_if_strict(run):
    broken = "{not json", pair("Who?", ""), {"messages": [{"role": "wizard", "content": "x"}]}
    path = run.write("rows.jsonl", [pair("Who?", "Me, certainly."), *broken])
    found = run("check", path, code=3)
    errors = [(f["file"], f["line"]) for f in found["faults"] if f["severity"] == "error"]
    assert errors == [(str(path), n) for n in (2, 3, 4)]
    assert (found["rows"], found["accepted"], found["rejected"]) == (4, 1, 3)
    rows = [pair(f"What is {n} plus {n}?", f"It is {2 * n}, of course.") for n in range(50)]
    clean = run("check", run.write("rows.jsonl", rows), "--strict")
    assert (clean["rows"], clean["accepted"], clean["warnings"], clean["faults"]) == (50, 50, 0, [])
    assert codes(run("check", run.write("rows.jsonl", [*rows, rows[0]]))) == [(51, "duplicate")]
    assert run("check", path, "--strict", code=3)["rejected"] == 0


def test_duplicates_name_the_first_place(run):
    rng = random.Random(4)
    base, answer = sentence(rng, 40), sentence(rng, 40)
    rows = [
        pair(base, answer),
        pair(sentence(rng, 40), sentence(rng, 40)),
        pair(base, answer),
        pair(base.upper(), answer.replace(" ", "  ") + "  \n"),
        pair(base.replace(base.split()[7], "replaced"), answer),
    ]
    path = run.write("rows.jsonl", rows)
    found = run("check", path)
    assert codes(found) == [(3, "duplicate"), (4, "respelled-duplicate"), (5, "near-duplicate")]
    assert all(f"{path}:1" in fault["message"] for fault in found["faults"])
    assert codes(run("check", path, "--no-near-duplicates")) == [(3, "duplicate")]
    # A minified array keeps its rows apart.
    path = run.write("rows.json", [json.dumps([rows[1], rows[0], rows[4]])])
    (fault,) = run("check", path)["faults"]
    assert (fault["code"], fault["where"]) == ("near-duplicate", f"{path}:#3")
    assert f"{path}:#2" in fault["message"]


def test_rows_of_one_split_in_another_are_leaks(run):
    rng = random.Random(2)
    rows = [pair(sentence(rng, 30), sentence(rng, 30)) for _ in range(20)]
    near = pair(rows[3]["prompt"] + " please", rows[3]["completion"])
    run.write("train.jsonl", rows[:10])
    run.write("test.jsonl", [rows[0], *rows[10:15], near])
    run.write("dev.jsonl", [rows[16], rows[1]])
    faults = run("check", run.home)["faults"]
    assert sorted((Path(f["file"]).name, f["line"], f["code"]) for f in faults) == [
        ("dev.jsonl", 2, "leak"), ("test.jsonl", 1, "leak"), ("test.jsonl", 7, "near-leak"),
    ]  # fmt: skip
    assert "train.jsonl:1" in next(f["message"] for f in faults if f["line"] == 1)


def test_lints_say_where_and_what(run):
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
    faults = run("check", run.write("rows.jsonl", [*rows.values(), *systems]))["faults"]
    by_line = {f["line"]: f["code"] for f in faults if f["code"] != "short-answer"}
    assert by_line == {**dict(enumerate(rows, 1)), len(rows) + 3: "system-drift"}
    assert all(fault["hint"] for fault in faults)


def test_own_lints_replace_or_extend(run):
    path = run.write("rows.jsonl", [pair("Colour?", "As an AI language model, I am Foobar.")])
    own = '[[lint]]\ncode = "foobar"\nmessage = "m"\nwhere = "assistant"\nphrases = ["foobar"]\n'
    lints = run.home / "own.toml"
    lints.write_text(own)
    assert codes(run("check", path, "--lints", lints)) == [(1, "foobar")]
    lints.write_text("extend = true\n" + own)
    assert {c for _, c in codes(run("check", path, "--lints", lints))} == {"disclaimer", "foobar"}
    for text, said in (
        ("[[lint]]\nmessage = 'x'", "code: is missing"),
        ("[[lint]]\ncode = 'a'\npatterns = ['(']", "faulty"),
        ("[[lint]]\ncode = 'a'\nphrase = ['x']", "did you mean phrases"),
        ("[[lint]]\ncode = 'a'\nwhere = 'robot'\nphrases = ['x']", "robot"),
        ("lint = 3", "lint"),
        ("[[lint", "TOML"),
    ):
        lints.write_text(text)
        assert said in run.told("check", path, "--lints", lints, code=2)


def test_a_model_finds_what_training_would_not_learn(run, tiny_quantized_dir):
    masked = chat("", "Say something nice to me.", "Something nice, then.", weight=0)
    long = pair("Count far.", " ".join(map(str, range(300))))
    path = run.write("rows.jsonl", [pair("Who?", "Me, certainly."), masked, long])
    found = run("check", path, "--model", tiny_quantized_dir, "--max-length", 64)
    assert codes(found) == [(2, "all-masked"), (3, "too-long")]
    assert found["accepted"] == 3
    assert "--model" in run.told("check", path, "--max-length", 9, code=2)


def test_people_see_the_same_fault_once_and_how_to_map_columns(run):
    rows = [f'{n},"It fails, {n} times","{{""label"": {n}}}"' for n in range(60)]
    table = run.write("tickets.csv", ["ID,Ticket text,Label (JSON)", *rows])
    first, last, *_ = run.told("check", table, code=3).splitlines()
    assert first.startswith(f"{table}:2: unknown-format: ")
    assert "; the same in 59 more rows: 3, 4, 5 and 56 more" in first
    assert last.startswith("60 rows, 0 accepted, 60 rejected, 0 warnings")
    # What is shown is what the option takes.
    shown = re.search(r"(--map .*)\); the same", first)
    assert shown is not None
    options = shlex.split(shown[1])
    assert options == ["--map", "instruction=Ticket text", "--map", "output=Label (JSON)"]
    assert "\n60 rows, 60 accepted" in run.told("check", table, *options)


def test_people_see_some_of_each_code_and_all_counts(run):
    rng = random.Random(3)
    rows = [pair(sentence(rng, 12), sentence(rng, 12)) for _ in range(70)]
    path = run.write("rows.jsonl", [*rows, *rows, "{"])
    told = run.told("check", path, code=3).splitlines()
    assert sum(": duplicate: " in line for line in told) == 50
    assert any(f"{path}:141: json: " in line and "(fix: " in line for line in told)
    (last,) = (line for line in told if "warnings" in line)
    assert last.startswith("141 rows, 140 accepted, 1 rejected, 70 warnings: 70 duplicate")


def test_what_is_not_learned_is_told_before_the_first_step(run, cli):
    def row(n, **flags):
        reply = {"role": "assistant", "content": "a word " * (90 if n == 1 else 2), "note": n}
        return {"messages": [{"role": "user", "content": f"q {n}"}, reply | flags], "topic": "t"}

    data = run.write("rows.jsonl", [row(n) for n in range(9)] + [row(9, loss=False)])
    planned = cli("plan", "--model", "starter", "--data", data, "--max-length", 128).out
    for said in (
        "note: left out: 'note' of assistant turns (10 rows)",
        "note: kept as tags, not learned: topic (10 rows)",
        "note: taken: replies that 'loss' keeps from being learned (1 row)",
        "are not used: longer than 128 tokens, or nothing to learn in them",
        "note: 1 reply of 1 row cut short: longer than 128 tokens",
    ):
        assert said in planned, (said, planned)
    told = run("check", data, "--strict", code=3)["told"]
    assert (told["lost"], told["tags"]) == ({"'note' of assistant turns": 10}, {"topic": 10})
    run("import", data, "--strict", out="strict", code=3)
    # What the import wrote beside the rows is nothing that a user has to be told.
    run("import", data, out="folder")
    planned = cli("plan", "--model", "starter", "--data", data.parent / "folder").out
    assert "note: kept as tags, not learned: topic (10 rows)\n" in planned
