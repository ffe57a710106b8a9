"""`data clean`: what goes, what changes, and the account of both."""

import random
import re

import pytest

from tests.cli.conftest import sentence
from tests.dataset.data_command import SPLITS

LISTS = ("removed", "changed", "rejected")


@pytest.fixture
def clean(run):
    """What the command says and the rows of each new file. Nothing is lost, ever."""

    def clean(source, *argv):
        made = run("clean", source, *argv, out=(out := f"out{len([*run.home.iterdir()])}"))
        assert made["rows"] == made["kept"] + made["removed"] + made["rejected"]
        before = None
        for name, step in made["steps"].items():
            assert step["in"] == step["kept"] + step["removed"], name
            assert before is None or step["in"] <= before, name
            before = step["kept"]
        files = {name: run.rows(out, name) for name in (*SPLITS, *LISTS)}
        assert [len(files[name]) for name in LISTS] == [made[name] for name in LISTS]
        splits = {name: len(files[name]) for name in SPLITS if files[name]}
        assert made["splits"] == splits and made["kept"] == sum(splits.values())
        return made, files

    return clean


def reasons(rows):
    return {row["line"]: row["reason"] for row in rows}


def answers(files):
    return [row["messages"][-1]["content"] for row in files["train"]]


def chat(*said, roles="", **more):
    """A ShareGPT row; `roles` is a string of h, g and s."""
    names = {"h": "human", "g": "gpt", "s": "system"}
    roles = roles or "hg" * len(said)
    turns = [{"from": names[r], "value": text} for r, text in zip(roles, said, strict=False)]
    return {"conversations": turns, **more}


def test_sharegpt_preset_cleans_as_listed(run, clean):
    page = (
        '<p>Use <strong>this</strong> code:</p><pre><div class="bg"><span>python</span>'
        '<button>Copy code</button><code class="language-python">x = 1 &lt; 2\n'
        "print(x)</code></pre><ul><li>one</li><li>two</li></ul>"
    )
    source = run.write(
        "rows.jsonl",
        [
            chat("How do I compare numbers in Python?", page),
            chat("Welcome to you, stranger!", "What is a river?", "Water that flows.", roles="ghg"),
            chat("What is a stone?", "A piece of rock.", "And then, what else?", roles="hgh"),
            chat("One question here.", "And one more.", "An answer to both.", roles="hhg"),
            chat("What is a bridge?", ""),
            chat("hm", "ok"),
            chat("Do it for me now.", "I'm sorry, but I can't assist with that request."),
            chat("Say the end token, please.", "It is </s> in many models."),
            chat("Start a fence.", "1 / 2\n\n```\nbashCopy code\nls -l\n```\nThat lists files."),
            chat(
                "What is a window?", "A hole in the wall with glass in it.", "Thanks!", "Any time."
            ),
            chat(
                "What is a window?", "A hole in the wall with glass in it.", "Bye!", "See you soon."
            ),
            chat(
                "What is a window?", "A hole in the wall with glass in it.", "Bye!", "See you soon."
            ),
        ],
    )
    made, files = clean(source, "--preset", "sharegpt")
    assert reasons(files["removed"]) == {
        4: "drop-irregular", 5: "empty-answers", 6: "too-short", 7: "refusals",
        12: "exact-duplicates", 11: "pair-duplicates",
    }  # fmt: skip
    assert reasons(files["changed"]) == {
        1: "html-to-text", 2: "trim-leading", 3: "trim-trailing", 8: "control-text", 9: "copy-code",
    }  # fmt: skip
    kept = answers(files)
    assert kept[0] == ("Use **this** code:\n\n```python\nx = 1 < 2\nprint(x)\n```\n\n- one\n- two")
    assert "</s>" not in kept[3]
    assert kept[4] == "```bash\nls -l\n```\nThat lists files."
    assert made["steps"]["refusals"] == {"in": 9, "kept": 8, "changed": 0, "removed": 1}


def test_html_becomes_the_markdown_it_was(run, clean):
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
    source = run.write("rows.jsonl", (chat("What is it?", page) for page in pages))
    _, files = clean(source, "--steps", "html-to-text")
    assert answers(files) == list(pages.values())


def test_duplicates_go_as_planted(run, clean):
    rng = random.Random(8)
    rows = [(sentence(rng, 30), sentence(rng, 30)) for _ in range(40)]
    edited = [(asked, answer.replace(answer.split()[4], "edited")) for asked, answer in rows[:10]]
    source = run.write(
        "near.jsonl",
        [chat(*r, source="one") for r in rows] + [chat(*r, source="two") for r in edited],
    )
    made, _ = clean(source, "--steps", "near-duplicates")
    assert made["kept"] == 40
    assert made["duplicate_sources"] == [{"later": "two", "earlier": "one", "rows": 10}]
    planted = [*rows, *rng.sample(rows, 12)]
    rng.shuffle(planted)
    source = run.write("pairs.jsonl", (chat(*row, "Go on.", sentence(rng, 9)) for row in planted))
    made, _ = clean(source, "--steps", "pair-duplicates")
    assert made["steps"]["pair-duplicates"]["removed"] == 12
    # Splits are kept, and of equal rows the held-out one stays.
    for split, of_it in (("train", rows[:8]), ("valid", rows[8:10]), ("test", [rows[2], rows[11]])):
        run.write(f"in/{split}.jsonl", (chat(*row) for row in of_it))
    made, files = clean(run.home / "in", "--steps", "exact-duplicates")
    assert made["splits"] == {"train": 7, "valid": 2, "test": 2}
    (removed,) = files["removed"]
    assert (removed["file"], removed["line"]) == ("train.jsonl", 3)
    assert "test.jsonl:1" in removed["detail"]


def test_personal_data_go_from_every_text_of_a_row(run, clean):
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
    source = run.write("rows.jsonl", [row, refused, {"of d@w.org": "has no known key"}])
    made, files = clean(source, "--steps", "refusals", "--pii", "all", "--keep-going")
    assert (made["steps"]["pii"]["changed"], made["removed"], made["rejected"]) == (1, 1, 1)
    assert "[EMAIL_1]" in made["faults"][0]["message"]
    (row,) = files["train"]
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
    for path in run.home.glob("out*/*"):
        assert not re.search(rb"@[xyzw].org|4155552671|401228871", path.read_bytes()), path.name


def test_one_spelling_one_language_and_merged_turns(run, clean):
    def row(system, number):
        return chat(system, f"Say {number}.", f"Here it is: {number}.", roles="shg")

    source = run.write(
        "systems.jsonl",
        [
            *(row("You are a helpful assistant.", n) for n in range(5)),
            row("you are a helpful asistant", 8),
            row("You answer as a pirate.", 9),
        ],
    )
    _, files = clean(source, "--steps", "whitespace", "--unify-system")
    systems = [row["messages"][0]["content"] for row in files["train"]]
    assert systems == ["You are a helpful assistant."] * 6 + ["You answer as a pirate."]
    source = run.write(
        "languages.jsonl",
        [
            chat("Was ist ein Fluß?", "Wasser, das fließt.  \r\n\r\nJa\u00a0doch.\u200b"),
            chat("Что такое река?", "Это вода, которая течёт."),
            chat("河流是什么？", "流动的水。"),
            chat("First.", "Second, too.", "An answer to both of them.", roles="hhg"),
        ],
    )
    steps = "--steps", "whitespace,merge-turns,language", "--language", "latin,cyrillic"
    made, files = clean(source, *steps)
    assert made["removed"] == 1
    assert answers(files)[0] == "Wasser, das fließt.\n\nJa doch."
    assert files["train"][2]["messages"][0]["content"] == "First.\n\nSecond, too."
    rows = chat("What is it?", "It is </s> here."), chat("What is it?", "It is just here.")
    source = run.write("control.jsonl", rows)
    _, files = clean(source, "--steps", "drop-control-text")
    assert reasons(files["removed"]) == {1: "drop-control-text"}


def test_broken_rows_stop_it_unless_told_to_go_on(run, clean):
    row = chat("What is a river?", "Water that flows.")
    source = run.write("rows.jsonl", [row, "{oops"])
    error = run.told("clean", source, out="none", code=3)
    assert f"{source}:2" in error and "--keep-going" in error
    assert not (run.home / "none").exists()
    made, files = clean(source, "--keep-going")
    assert (made["rows"], made["kept"], made["rejected"]) == (2, 1, 1)
    assert files["rejected"][0]["line"] == 2


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
        ("--pii email,", "--pii 'email,' has an empty name"),
        ("--similarity 0.4", "at least 0.5"),
        ("--language latn", "did you mean latin"),
    ],
)
def test_steps_that_cannot_be_are_refused(run, clean, argv, said):
    source = run.write("rows.jsonl", [chat("What?", "Water.")])
    assert said in run.told("clean", source, *argv.split(), out="none", code=2)
    assert not (run.home / "none").exists()


def test_cleaning_twice_changes_nothing_more_and_people_see_the_steps(run, clean):
    rng = random.Random(11)
    rows = [chat(sentence(rng, 12) + "  ", sentence(rng, 12) + "\r\n") for _ in range(30)]
    source = run.write("rows.jsonl", [*rows, *rows[:5]])
    made, once = clean(source)
    assert made["removed"] == 5
    again, twice = clean(made["out"])
    assert (again["removed"], again["changed"], again["kept"]) == (0, 0, 30)
    assert once["train"] == twice["train"]
    out = run.told("clean", source, out="told")
    assert "exact-duplicates" in out
    assert "35 rows, 30 kept (30 changed), 5 removed, 0 rejected" in out


def test_alpaca_preset_drops_the_known_faults(run, clean):
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
    made, files = clean(run.write("rows.jsonl", tasks), "--preset", "alpaca")
    details = [row["detail"].split(":")[0] for row in files["removed"]]
    assert {"url-only", "attachment", "merged-instructions"} <= {*details}
    assert (made["removed"], made["kept"]) == (4, 2)
    assert files["train"][1]["messages"][0]["content"] == "Tidy this.\n\na\nb"


def test_lists_are_counted_first_rounds_kept_and_ids_told_apart(run, clean):
    def turn(role, content):
        return {"role": role, "content": content}

    listed = "Do:\n\n1. a\n   more\n\n1. b\n```\n1. x\n1. y\n```\n1. c\nNow:\n1. d"
    rows = [
        {"id": "r", "messages": [turn("user", "u"), turn("assistant", listed)] * 2},
        {"id": "r", "messages": [turn("user", "another"), turn("assistant", "a 1. b")]},
        {"messages": [turn("user", "v"), turn("assistant", "1. a\n2. b")]},
    ]
    steps = "list-numbers,single-round,id-duplicates"
    made, files = clean(run.write("rows.jsonl", rows), "--steps", steps)
    assert [made["steps"][step]["changed"] for step in steps.split(",")] == [1, 1, 0]
    assert made["removed"] == 1
    first, last = (row["messages"][1]["content"] for row in files["train"])
    assert first == "Do:\n\n1. a\n   more\n\n2. b\n```\n1. x\n1. y\n```\n3. c\nNow:\n1. d"
    assert last == "1. a\n2. b"
