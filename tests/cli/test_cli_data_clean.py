"""`data clean`: what goes, what changes, and the account of both."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import sentence


def clean(cli: Any, source: Path, *argv: object) -> tuple[dict[str, Any], Path]:
    """What the command says and the new folder. Nothing is lost: in = kept + removed, always."""
    out = source.parent / f"out{len(list(source.parent.iterdir()))}"
    made = cli.json("data", "clean", source, "--out", out, *argv)
    assert made["rows"] == made["kept"] + made["removed"] + made["rejected"]
    before = None
    for name, step in made["steps"].items():
        assert step["in"] == step["kept"] + step["removed"], name
        assert before is None or step["in"] <= before, name
        before = step["kept"]
    assert len(rows_of(out / "removed.jsonl")) == made["removed"]
    assert len(rows_of(out / "changed.jsonl")) == made["changed"]
    assert sum(len(rows_of(out / f"{s}.jsonl")) for s in made["splits"]) == made["kept"]
    assert made["ledger"]
    return made, out


def rows_of(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return list(map(json.loads, lines))


def reasons(path: Path) -> dict[int, str]:
    return {row["line"]: row["reason"] for row in rows_of(path)}


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


def answers(out: Path) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows_of(out / "train.jsonl")]


def test_sharegpt_preset_cleans_as_listed(cli: Any, tmp_path: Path) -> None:
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
    made, out = clean(cli, source, "--preset", "sharegpt")
    assert reasons(out / "removed.jsonl") == {
        4: "drop-irregular", 5: "empty-answers", 6: "too-short", 7: "refusals",
        12: "exact-duplicates", 11: "pair-duplicates",
    }  # fmt: skip
    assert reasons(out / "changed.jsonl") == {
        1: "html-to-text", 2: "trim-leading", 3: "trim-trailing", 8: "control-text", 9: "copy-code",
    }  # fmt: skip
    kept = answers(out)
    assert kept[0] == ("Use **this** code:\n\n```python\nx = 1 < 2\nprint(x)\n```\n\n- one\n- two")
    assert "</s>" not in kept[3]
    assert kept[4] == "```bash\nls -l\n```\nThat lists files."
    assert made["steps"]["refusals"] == {"in": 9, "kept": 8, "changed": 0, "removed": 1}


def test_html_becomes_the_markdown_it_was(cli: Any, tmp_path: Path) -> None:
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
    _, out = clean(cli, source, "--steps", "html-to-text")
    assert answers(out) == list(pages.values())


def test_duplicates_go_as_planted(cli: Any, tmp_path: Path) -> None:
    rng = random.Random(8)
    rows = [(sentence(rng, 30), sentence(rng, 30)) for _ in range(40)]
    edited = [(asked, answer.replace(answer.split()[4], "edited")) for asked, answer in rows[:10]]
    source = write(
        tmp_path / "near.jsonl",
        *(chat(*row, source="one") for row in rows),
        *(chat(*row, source="two") for row in edited),
    )
    made, _ = clean(cli, source, "--steps", "near-duplicates")
    assert made["kept"] == 40
    assert made["duplicate_sources"] == [{"later": "two", "earlier": "one", "rows": 10}]
    planted = [*rows, *rng.sample(rows, 12)]
    rng.shuffle(planted)
    source = write(
        tmp_path / "pairs.jsonl", *(chat(*row, "Go on.", sentence(rng, 9)) for row in planted)
    )
    made, _ = clean(cli, source, "--steps", "pair-duplicates")
    assert made["steps"]["pair-duplicates"]["removed"] == 12
    # Splits are kept, and of equal rows the held-out one stays.
    folder = tmp_path / "in"
    folder.mkdir()
    for split, of_it in (("train", rows[:8]), ("valid", rows[8:10]), ("test", [rows[2], rows[11]])):
        write(folder / f"{split}.jsonl", *(chat(*row) for row in of_it))
    made, out = clean(cli, folder, "--steps", "exact-duplicates")
    assert made["splits"] == {"train": 7, "valid": 2, "test": 2}
    (removed,) = rows_of(out / "removed.jsonl")
    assert (removed["file"], removed["line"]) == ("train.jsonl", 3)
    assert "test.jsonl:1" in removed["detail"]


def test_personal_data_go_from_every_text_of_a_row(cli: Any, tmp_path: Path) -> None:
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
    made, out = clean(cli, source, "--steps", "refusals", "--pii", "all", "--keep-going")
    assert (made["steps"]["pii"]["changed"], made["removed"], made["rejected"]) == (1, 1, 1)
    assert "[EMAIL_1]" in made["faults"][0]["message"]
    (row,) = rows_of(out / "train.jsonl")
    system, question, called, result, answer = row["messages"]
    assert system["content"] == "You help Ann ([EMAIL_1])."
    assert question["content"] == "Book a seat for [EMAIL_1]"
    assert "[EMAIL_1]" in called["content"] + called.get("reasoning_content", "")
    function = called["tool_calls"][0]["function"]
    assert function == {"name": "book", "arguments": {"mail": "[EMAIL_1]", "phone": "[PHONE_1]"}}
    assert (result["tool_call_id"], result["content"]) == ("c1", '{"ssn": "[SSN_1]", "n": [1, 2]}')
    assert answer["content"] == "Done, [EMAIL_2]."
    asked = row["tools"][0]["function"]["parameters"]["properties"]["mail"]
    assert asked == {
        "type": "string", "description": "as [EMAIL_2]", "enum": ["[EMAIL_1]", "[EMAIL_3]"],
        "default": "[EMAIL_3]",
    }  # fmt: skip
    assert (row["author"], row["tel"], row["year"]) == ("[EMAIL_3]", "[PHONE_1]", "1999")
    assert row["contacts"] == '["[EMAIL_2]","[EMAIL_4]"]'
    for path in out.rglob("*"):
        if path.is_file():
            assert not re.search(rb"@[xyzw].org|4155552671|401228871", path.read_bytes()), path.name


def test_one_spelling_one_language_and_merged_turns(cli: Any, tmp_path: Path) -> None:
    def row(system: str, number: int) -> dict[str, Any]:
        return chat(system, f"Say {number}.", f"Here it is: {number}.", roles="shg")

    source = write(
        tmp_path / "systems.jsonl",
        *(row("You are a helpful assistant.", n) for n in range(5)),
        row("you are a helpful asistant", 8),
        row("You answer as a pirate.", 9),
    )
    _, out = clean(cli, source, "--steps", "whitespace", "--unify-system")
    systems = [row["messages"][0]["content"] for row in rows_of(out / "train.jsonl")]
    assert systems == ["You are a helpful assistant."] * 6 + ["You answer as a pirate."]
    source = write(
        tmp_path / "languages.jsonl",
        chat("Was ist ein Fluß?", "Wasser, das fließt.  \r\n\r\nJa\u00a0doch.\u200b"),
        chat("Что такое река?", "Это вода, которая течёт."),
        chat("河流是什么？", "流动的水。"),
        chat("First.", "Second, too.", "An answer to both of them.", roles="hhg"),
    )
    steps = "--steps", "whitespace,merge-turns,language", "--language", "latin,cyrillic"
    made, out = clean(cli, source, *steps)
    assert made["removed"] == 1
    assert answers(out)[0] == "Wasser, das fließt.\n\nJa doch."
    assert rows_of(out / "train.jsonl")[2]["messages"][0]["content"] == "First.\n\nSecond, too."
    rows = chat("What is it?", "It is </s> here."), chat("What is it?", "It is just here.")
    source = write(tmp_path / "control.jsonl", *rows)
    _, out = clean(cli, source, "--steps", "drop-control-text")
    assert reasons(out / "removed.jsonl") == {1: "drop-control-text"}


def test_broken_rows_stop_it_unless_told_to_go_on(cli: Any, tmp_path: Path) -> None:
    row = chat("What is a river?", "Water that flows.")
    source, out = write(tmp_path / "rows.jsonl", row, "{oops"), tmp_path / "out"
    error = cli("data", "clean", source, "--out", out, code=3).err
    assert f"{source}:2" in error and "--keep-going" in error
    assert not out.exists()
    made, out = clean(cli, source, "--keep-going")
    assert (made["rows"], made["kept"], made["rejected"]) == (2, 1, 1)
    assert rows_of(out / "rejected.jsonl")[0]["line"] == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--steps near-duplicate", "did you mean near-duplicates"),
        ("--steps whitespace,whitespace", "twice"),
        ("--steps exact-duplicates,trim-leading", "too late"),
        ("--steps language", "--language"),
        ("--steps whitespace --preset alpaca", "not both"),
        ("--drop refusals --steps refusals", "did you mean refusal"),
        ("--pii emails", "did you mean email"),
        ("--language latn", "did you mean latin"),
    ],
)
def test_steps_that_cannot_be_are_refused(cli: Any, tmp_path: Path, argv: str, said: str) -> None:
    source, out = write(tmp_path / "rows.jsonl", chat("What?", "Water.")), tmp_path / "out"
    assert said in cli("data", "clean", source, "--out", out, *argv.split(), code=2).err
    assert not out.exists()


def test_cleaning_twice_changes_nothing_more_and_people_see_the_steps(
    cli: Any, tmp_path: Path
) -> None:
    rng = random.Random(11)
    rows = [chat(sentence(rng, 12) + "  ", sentence(rng, 12) + "\r\n") for _ in range(30)]
    source = write(tmp_path / "rows.jsonl", *rows, *rows[:5])
    made, once = clean(cli, source)
    assert made["removed"] == 5
    again, twice = clean(cli, once)
    assert (again["removed"], again["changed"], again["kept"]) == (0, 0, 30)
    assert (once / "train.jsonl").read_bytes() == (twice / "train.jsonl").read_bytes()
    out = cli("data", "clean", source, "--out", tmp_path / "told").out
    assert "exact-duplicates" in out
    assert "35 rows, 30 kept (30 changed), 5 removed, 0 rejected" in out


def test_alpaca_preset_drops_the_known_faults(cli: Any, tmp_path: Path) -> None:
    rows = (
        ("Summarize this article.", "https://example.com/x", "It speaks of trees."),
        ("Describe the picture.", "<Picture Attached>", "A dog on a meadow."),
        ("Name a colour.\n\n14. Instruction: Name a tree.", "", "Blue, or an oak."),
        ("Name a planet.", "", ""),
        ("Name a planet.", "<noinput>", "Mars is one of them."),
        ("Tidy this.", "a  \nb", "a\nb it is now."),
    )
    keys = "instruction", "input", "output"
    tasks = (dict(zip(keys, row, strict=True)) for row in rows)
    made, out = clean(cli, write(tmp_path / "rows.jsonl", *tasks), "--preset", "alpaca")
    details = [row["detail"].split(":")[0] for row in rows_of(out / "removed.jsonl")]
    assert {"url-only", "attachment", "merged-instructions"} <= {*details}
    assert (made["removed"], made["kept"]) == (4, 2)
    assert rows_of(out / "train.jsonl")[1]["messages"][0]["content"] == "Tidy this.\n\na\nb"
