"""`data clean`: what goes, what changes, and the account of both."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main

Capture = pytest.CaptureFixture[str]
WORDS = (
    "river stone bright engine window market garden silver paper north winter signal letter bridge"
    " cloud forest travel music number planet kitchen doctor museum button"
).split()


def run(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["data", "clean", *map(str, argv), "--json", "--offline"])
    captured = capsys.readouterr()
    assert (left.value.code or 0) == code, captured
    if code:
        return {"err": captured.err}
    assert captured.out.count("\n") == 1
    value: dict[str, Any] = json.loads(captured.out)
    check_account(value)
    return value


def check_account(made: dict[str, Any]) -> None:
    """Nothing is lost: rows in = kept + removed, at every step and in all."""
    assert made["rows"] == made["kept"] + made["removed"] + made["rejected"]
    before = None
    for name, step in made["steps"].items():
        assert step["in"] == step["kept"] + step["removed"], name
        assert before is None or step["in"] <= before, name
        before = step["kept"]
    out = Path(made["out"])
    assert len(rows_of(out / "removed.jsonl")) == made["removed"]
    assert len(rows_of(out / "changed.jsonl")) == made["changed"]
    assert sum(len(rows_of(out / f"{s}.jsonl")) for s in made["splits"]) == made["kept"]
    assert made["ledger"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def chat(*said: str, roles: str = "", **more: Any) -> dict[str, Any]:
    """A ShareGPT row; `roles` is a string of h, g and s."""
    names = {"h": "human", "g": "gpt", "s": "system"}
    roles = roles or "hg" * len(said)
    turns = [{"from": names[r], "value": text} for r, text in zip(roles, said, strict=False)]
    return {"conversations": turns, **more}


def write(path: Path, *rows: Any) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def answers(out: Path, split: str = "train") -> list[str]:
    return [row["messages"][-1]["content"] for row in rows_of(out / f"{split}.jsonl")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(90)) for _ in range(words))


def test_sharegpt_preset_cleans_as_listed(capsys: Capture, tmp_path: Path) -> None:
    page = (
        '<p>Use <strong>this</strong> code:</p><pre><div class="bg"><span>python</span>'
        '<button>Copy code</button><code class="language-python">x = 1 &lt; 2\n'
        "print(x)</code></pre><ul><li>one</li><li>two</li></ul>"
    )
    source = write(
        tmp_path / "rows.jsonl",
        chat("How do I compare numbers in Python?", page),
        chat("Welcome to you, stranger!", "What is a river?", "Water that flows.", roles="ghg"),
        chat("What is a stone?", "A piece of rock.", "And then, what else?", roles="hgh"),
        chat("One question here.", "And one more.", "An answer to both.", roles="hhg"),
        chat("What is a bridge?", ""),
        chat("hm", "ok"),
        chat("Do it for me now.", "I'm sorry, but I can't assist with that request."),
        chat("Say the end token, please.", "It is </s> in many models."),
        chat("Start a fence.", "1 / 2\n\n```\nbashCopy code\nls -l\n```\nThat lists files."),
        chat("What is a window?", "A hole in the wall with glass in it.", "Thanks!", "Any time."),
        chat("What is a window?", "A hole in the wall with glass in it.", "Bye!", "See you soon."),
        chat("What is a window?", "A hole in the wall with glass in it.", "Bye!", "See you soon."),
    )
    out = tmp_path / "out"
    made = run(capsys, source, "--out", out, "--preset", "sharegpt")
    reasons = {row["line"]: row["reason"] for row in rows_of(out / "removed.jsonl")}
    assert reasons == {
        4: "drop-irregular",
        5: "empty-answers",
        6: "too-short",
        7: "refusals",
        12: "exact-duplicates",
        11: "pair-duplicates",
    }
    changed = {row["line"]: row["reason"] for row in rows_of(out / "changed.jsonl")}
    assert changed == {
        1: "html-to-text",
        2: "trim-leading",
        3: "trim-trailing",
        8: "control-text",
        9: "copy-code",
    }
    kept = answers(out)
    assert kept[0] == ("Use **this** code:\n\n```python\nx = 1 < 2\nprint(x)\n```\n\n- one\n- two")
    assert "</s>" not in kept[3]
    assert kept[4] == "```bash\nls -l\n```\nThat lists files."
    assert made["steps"]["refusals"] == {"in": 9, "kept": 8, "changed": 0, "removed": 1}


def test_html_becomes_the_markdown_it_was(capsys: Capture, tmp_path: Path) -> None:
    pages = {
        "<p>He said:</p><blockquote><p>one</p><p>two</p></blockquote><p>So.</p>":
            "He said:\n\n> one\n>\n> two\n\nSo.",
        "<blockquote><p>q</p><blockquote>in it</blockquote></blockquote>": "> q\n>\n> > in it",
        "<ul><li><p>a</p></li><li>b<ol start=3><li>c</li></ol></li></ul>": "- a\n- b\n  3. c",
        "<table><tr><th>x</th><th>y</th></tr><tr><td><p>1</p><p>2</p></td></tr></table>":
            "| x | y |\n| --- | --- |\n| 1 2 |  |",
        "<h2>T</h2><p>see <a href='u'>it</a><br>now</p><hr><p>end":
            "## T\n\nsee [it](u)\nnow\n\n---\n\nend",
        "Tags such as `<p>` and </b> are shown.": "Tags such as `<p>` and </b> are shown.",
    }  # fmt: skip
    source = write(tmp_path / "rows.jsonl", *(chat("What is it?", page) for page in pages))
    run(capsys, source, "--out", tmp_path / "out", "--steps", "html-to-text")
    assert answers(tmp_path / "out") == list(pages.values())


def test_splits_are_kept_and_the_held_out_row_stays(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [chat(sentence(rng, 20), sentence(rng, 20)) for _ in range(12)]
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "train.jsonl", *rows[:8])
    write(folder / "valid.jsonl", *rows[8:10])
    write(folder / "test.jsonl", rows[2], *rows[10:])
    out = tmp_path / "out"
    made = run(capsys, folder, "--out", out, "--steps", "exact-duplicates")
    assert made["splits"] == {"train": 7, "valid": 2, "test": 3}
    (removed,) = rows_of(out / "removed.jsonl")
    assert (removed["file"], removed["line"]) == ("train.jsonl", 3)
    assert "test.jsonl:1" in removed["detail"]


def test_near_duplicates_go_and_are_counted_by_source(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(8)
    rows = [chat(sentence(rng, 30), sentence(rng, 30), source="one") for _ in range(40)]
    copies = []
    for row in rows[:10]:
        words = row["conversations"][1]["value"].split()
        words[4] = "edited"
        copies.append(chat(row["conversations"][0]["value"], " ".join(words), source="two"))
    source = write(tmp_path / "rows.jsonl", *rows, *copies)
    made = run(capsys, source, "--out", tmp_path / "out", "--steps", "near-duplicates")
    assert made["kept"] == 40
    assert made["duplicate_sources"] == [{"later": "two", "earlier": "one", "rows": 10}]


def test_pair_duplicates_reproduce_a_planted_count(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(9)
    rows = [chat(sentence(rng, 9), sentence(rng, 9), "Go on.", sentence(rng, 9)) for _ in range(30)]
    planted = [
        chat(*(turn["value"] for turn in row["conversations"][:2]), "More!", sentence(rng, 5))
        for row in rng.sample(rows, 12)
    ]
    everything = [*rows, *planted]
    rng.shuffle(everything)
    source = write(tmp_path / "rows.jsonl", *everything)
    made = run(capsys, source, "--out", tmp_path / "out", "--steps", "pair-duplicates")
    assert made["steps"]["pair-duplicates"]["removed"] == 12


def test_personal_data_go_from_every_text_of_a_row(capsys: Capture, tmp_path: Path) -> None:
    arguments = {"mail": "ann@x.org", "phone": 4155552671}
    call = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": arguments}}
    mail = {"type": "string", "description": "as bob@y.org", "enum": ["ann@x.org", "c@z.org"]}
    schema = {"type": "object", "properties": {"mail": {**mail, "default": "c@z.org"}}}
    row = {
        "messages": [
            {"role": "system", "content": "You help Ann (ann@x.org)."},
            {"role": "user", "content": "Book a seat for ann@x.org"},
            {"role": "assistant", "reasoning_content": "Ann is ann@x.org.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"ssn": 401228871, "n": [1, 2]}'},
            {"role": "assistant", "content": "Done, bob@y.org."},
        ],
        "tools": [{"type": "function", "function": {"name": "book", "parameters": schema}}],
        "metadata": {"author": "c@z.org", "tel": 4155552671, "year": 1999},
        "contacts": ["bob@y.org", "d@w.org"],
    }
    refused = chat("My mail is d@w.org.", "I'm sorry, but I can't help with that.")
    source = write(tmp_path / "rows.jsonl", row, refused, {"of d@w.org": "has no known key"})
    out, flags = tmp_path / "out", ("--steps", "refusals", "--pii", "all", "--keep-going")
    made = run(capsys, source, "--out", out, *flags)
    assert (made["steps"]["pii"]["changed"], made["removed"], made["rejected"]) == (1, 1, 1)
    assert "[EMAIL_1]" in made["faults"][0]["message"]
    (clean,) = rows_of(out / "train.jsonl")
    system, question, called, result, answer = clean["messages"]
    assert system["content"] == "You help Ann ([EMAIL_1])."
    assert question["content"] == "Book a seat for [EMAIL_1]"
    assert "[EMAIL_1]" in called["content"] + called.get("reasoning_content", "")
    function = called["tool_calls"][0]["function"]
    assert function == {"name": "book", "arguments": {"mail": "[EMAIL_1]", "phone": "[PHONE_1]"}}
    assert (result["tool_call_id"], result["content"]) == ("c1", '{"ssn": "[SSN_1]", "n": [1, 2]}')
    assert answer["content"] == "Done, [EMAIL_2]."
    asked = clean["tools"][0]["function"]["parameters"]["properties"]["mail"]
    assert asked == {
        "type": "string", "description": "as [EMAIL_2]", "enum": ["[EMAIL_1]", "[EMAIL_3]"],
        "default": "[EMAIL_3]",
    }  # fmt: skip
    assert (clean["author"], clean["tel"], clean["year"]) == ("[EMAIL_3]", "[PHONE_1]", "1999")
    assert clean["contacts"] == '["[EMAIL_2]","[EMAIL_4]"]'
    for path in out.rglob("*"):
        if path.is_file():
            assert not re.search(rb"@[xyzw].org|4155552671|401228871", path.read_bytes()), path.name


def test_system_prompts_are_written_one_way(capsys: Capture, tmp_path: Path) -> None:
    def row(system: str, number: int) -> dict[str, Any]:
        return chat(system, f"Say {number}.", f"Here it is: {number}.", roles="shg")

    source = write(
        tmp_path / "rows.jsonl",
        *(row("You are a helpful assistant.", n) for n in range(5)),
        row("you are a helpful asistant", 8),
        row("You answer as a pirate.", 9),
    )
    out = tmp_path / "out"
    run(capsys, source, "--out", out, "--steps", "whitespace", "--unify-system")
    systems = [row["messages"][0]["content"] for row in rows_of(out / "train.jsonl")]
    assert systems == ["You are a helpful assistant."] * 6 + ["You answer as a pirate."]


def test_language_whitespace_and_merging(capsys: Capture, tmp_path: Path) -> None:
    source = write(
        tmp_path / "rows.jsonl",
        chat("Was ist ein Fluß?", "Wasser, das fließt.  \r\n\r\nJa\u00a0doch.\u200b"),
        chat("Что такое река?", "Это вода, которая течёт."),
        chat("河流是什么？", "流动的水。"),
        chat("First.", "Second, too.", "An answer to both of them.", roles="hhg"),
    )
    out = tmp_path / "out"
    steps = "whitespace,merge-turns,language"
    made = run(capsys, source, "--out", out, "--steps", steps, "--language", "latin,cyrillic")
    assert made["removed"] == 1
    assert answers(out)[0] == "Wasser, das fließt.\n\nJa doch."
    assert rows_of(out / "train.jsonl")[2]["messages"][0]["content"] == "First.\n\nSecond, too."


def test_broken_rows_stop_it_unless_told_to_go_on(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", chat("What is a river?", "Water that flows."), "{oops")
    out = tmp_path / "out"
    failed = run(capsys, source, "--out", out, code=3)
    assert f"{source}:2" in failed["err"]
    assert "--keep-going" in failed["err"]
    assert not out.exists()
    made = run(capsys, source, "--out", out, "--keep-going")
    assert (made["rows"], made["kept"], made["rejected"]) == (2, 1, 1)
    assert rows_of(out / "rejected.jsonl")[0]["line"] == 2


def test_steps_that_cannot_be_are_refused(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", chat("What is a river?", "Water that flows."))
    for argv, said in (
        (("--steps", "near-duplicate"), "did you mean near-duplicates"),
        (("--steps", "whitespace,whitespace"), "twice"),
        (("--steps", "exact-duplicates,trim-leading"), "too late"),
        (("--steps", "language"), "--language"),
        (("--steps", "whitespace", "--preset", "alpaca"), "not both"),
        (("--drop", "refusals", "--steps", "refusals"), "did you mean refusal"),
        (("--pii", "emails"), "did you mean email"),
        (("--language", "latn"), "did you mean latin"),
    ):
        failed = run(capsys, source, "--out", tmp_path / "out", *argv, code=2)
        assert said in failed["err"]
        assert not (tmp_path / "out").exists()


def test_cleaning_twice_changes_nothing_more(capsys: Capture, tmp_path: Path) -> None:
    rng = random.Random(11)
    rows = [chat(sentence(rng, 12) + "  ", sentence(rng, 12) + "\r\n") for _ in range(30)]
    source = write(tmp_path / "rows.jsonl", *rows, *rows[:5])
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert run(capsys, source, "--out", once)["removed"] == 5
    again = run(capsys, once, "--out", twice)
    assert (again["removed"], again["changed"], again["kept"]) == (0, 0, 30)
    assert (once / "train.jsonl").read_bytes() == (twice / "train.jsonl").read_bytes()


def test_alpaca_preset_drops_the_known_faults(capsys: Capture, tmp_path: Path) -> None:
    def task(instruction: str, given: str, output: str) -> dict[str, str]:
        return {"instruction": instruction, "input": given, "output": output}

    source = write(
        tmp_path / "rows.jsonl",
        task("Summarize this article.", "https://example.com/x", "It speaks of trees."),
        task("Describe the picture.", "<Picture Attached>", "A dog on a meadow."),
        task("Name a colour.\n\n14. Instruction: Name a tree.", "", "Blue, or an oak."),
        task("Name a planet.", "", ""),
        task("Name a planet.", "<noinput>", "Mars is one of them."),
        task("Tidy this.", "a  \nb", "a\nb it is now."),
    )
    out = tmp_path / "out"
    made = run(capsys, source, "--out", out, "--preset", "alpaca")
    reasons = {row["line"]: row["detail"].split(":")[0] for row in rows_of(out / "removed.jsonl")}
    assert {line: reasons[line] for line in (1, 2, 3)} == {
        1: "url-only",
        2: "attachment",
        3: "merged-instructions",
    }
    assert (made["removed"], made["kept"]) == (4, 2)
    assert rows_of(out / "train.jsonl")[1]["messages"][0]["content"] == "Tidy this.\n\na\nb"


def test_people_see_a_table_of_steps(capsys: Capture, tmp_path: Path) -> None:
    row = chat("What is a river?", "Water that flows to the sea.")
    source = write(tmp_path / "rows.jsonl", row, row)
    with pytest.raises(SystemExit) as left:
        main(["data", "clean", str(source), "--out", str(tmp_path / "out")])
    assert not left.value.code
    out = capsys.readouterr().out
    assert "exact-duplicates" in out
    assert "2 rows, 1 kept (0 changed), 1 removed, 0 rejected" in out
