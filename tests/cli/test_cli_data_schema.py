"""`data schema` and what follows from it: rows that break it, answers that keep to it."""

import json
import random

import pytest


def row(answer):
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return {"prompt": f"Read note {random.random()}.", "completion": text}


def tickets(rows):
    """Answers with what a schema has to tell apart: closed lists, names, what may be missing."""
    rng = random.Random(3)
    return [
        {
            "kind": rng.choice(["bug", "wish", "größe"]),
            "who": f"Person {rng.randrange(10**6)}",
            "score": rng.choice([1, 2.5]),
            "due": rng.choice([None, "2026-01-0" + str(rng.randint(1, 9)), f"in {n} days"]),
            "slots": {"city": "Bern"} if n % 3 else {},
            "tags": ["x"] * (n % 2),
        }
        for n in range(rows)
    ]


def test_a_schema_is_inferred_from_the_answers(run, cli, tmp_path):
    path = run.write("rows.jsonl", [row("no JSON"), row("42"), *map(row, tickets(200))])
    out = tmp_path / "schema.json"
    found = run("schema", path, "--out", out)
    assert (found["answers"], found["json"], found["first_other"]) == (202, 200, f"{path}:1")
    assert found["held_out"] > 0.9
    assert json.loads(out.read_text()) == found["schema"]
    kinds = found["schema"]["properties"]
    assert kinds["kind"] == {"type": "string", "enum": ["bug", "größe", "wish"]}
    assert kinds["who"] == {"type": "string"}
    assert kinds["score"] == {"type": "number"}
    assert kinds["due"] == {"type": ["string", "null"]}
    assert kinds["tags"] == {"type": "array", "items": {"type": "string", "enum": ["x"]}}
    assert "required" not in kinds["slots"] and kinds["slots"]["additionalProperties"] is False
    assert found["schema"]["required"] == ["kind", "who", "score", "due", "slots", "tags"]
    # What is printed without --out is the schema alone, for a pipe.
    printed = cli("data", "schema", path)
    assert json.loads(printed.out) == found["schema"] and f"{path}:1" in printed.err
    assert "--out" not in cli("data", "schema", path, "--out", out, code=5).out
    texts = run.write("texts.jsonl", [row("a text")])
    assert "no answer is a JSON object" in cli("data", "schema", texts, code=3).err


def test_answers_that_break_the_shape_of_the_others_are_warnings(run, tmp_path):
    good = tickets(200)
    broken = ["not JSON", {**good[0], "score": "high"}, {**good[0], "kind": "bgu"}, {"kind": "bug"}]
    path = run.write("rows.jsonl", [*map(row, [*good, *broken])])

    def told(*flags):
        faults = run("check", path, "--no-near-duplicates", *flags)["faults"]
        return {f["line"]: (f["code"], f["message"]) for f in faults if "answer" in f["code"]}

    found = told()
    assert {line: code for line, (code, _) in found.items()} == {
        201: "answer-no-json",
        **dict.fromkeys((202, 203, 204), "answer-shape"),
    }
    assert "score: " in found[202][1] and "kind: " in found[203][1]
    schema = tmp_path / "own.json"
    schema.write_text(json.dumps({"properties": {"score": {"maximum": 2}}}))
    fives = [n for n, each in enumerate(good, 1) if each["score"] == 2.5]
    assert [line for line in told("--schema", schema) if line <= 200] == fives
    mixed = run.write("mixed.jsonl", [row(each) for each in (*good[:30], *["A text."] * 30)])
    assert not {f["code"] for f in run("check", mixed)["faults"]} & {"answer-no-json"}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "strin"}, "no JSON Schema: #/type: "),
        ({"$ref": "http://203.0.113.1/a"}, "no JSON Schema: "),
        ([], "is not a JSON object"),
    ],
)
def test_what_is_no_schema_is_refused_and_nothing_is_fetched(cli, tmp_path, schema, told):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    printed = cli("generate", "--model", "starter", "--schema", path, "Who?", code=3)
    assert f"{path}: {told}" in printed.err


def test_generate_and_chat_hold_to_a_schema(cli, tmp_path, monkeypatch):
    path, prompts = tmp_path / "schema.json", tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1}))
    prompts.write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n')
    model = ("--model", "starter", "--schema", path, "--max-tokens", 24)
    one = json.loads(cli("generate", *model, "One?", "--json").out)
    both = json.loads(cli("generate", *model, "--file", prompts, "--json").out)["answers"]
    assert both[0]["text"] == one["text"]
    for answer in (one, *both):
        assert answer["finish_reason"] == "stop"
        assert set(json.loads(answer["text"])) <= {"a", "b"}
        assert isinstance(answer["shortened"], bool)
