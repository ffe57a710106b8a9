"""Answers of an untrained model that are held to a schema are JSON of it, however few tokens."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import pytest

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.schema import Shape
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.opening import Opening, open_model
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import ANY_ORDER
from mlx_itune.model.serving.engine import Drawing
from mlx_itune.model.serving.grammar import Grammar, Tokens
from tests.small_tokenizers import TOKENIZERS, fast

NODE = {
    "type": "object",
    "properties": {
        "größe": {"type": "number"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["größe", "next"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "recursive": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "nested": {
        "type": "object",
        "properties": {
            "kind": {"enum": ["naïve", "日本", "urgent"]},
            "items": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}},
                    "required": ["n"],
                    "additionalProperties": False,
                },
                "minItems": 2,
                "maxItems": 3,
            },
            "code": {"type": "string", "pattern": "^(ab)*c$"},
            "id": {"type": "string", "pattern": "x[0-9]{3}"},
            "on": {"type": "string", "format": "date"},
        },
        "required": ["kind", "items", "code", "id", "on"],
        "additionalProperties": False,
    },
    "any order": {
        "type": "object",
        "properties": {
            "intent": {"enum": ["play", "rate"]},
            "slots": {
                "type": "object",
                "properties": {"artist": {"type": "string"}, 'the "n"': {"type": "integer"}},
                "additionalProperties": False,
                **ANY_ORDER,
            },
        },
        "required": ["intent", "slots"],
        "additionalProperties": False,
    },
    "list of texts": {"type": "array", "items": {"type": "string", "minLength": 2}},
}
PROMPTS = ("Hello, who are you?", "Give the vitals as JSON.", "Give the triage level.")


def is_valid(value: Any, name: str) -> bool:
    """By hand: what of each schema a wrong mask would break first."""
    if name == "list of texts":
        return isinstance(value, list) and all(len(each) >= 2 for each in value)
    if name == "any order":
        assert value["slots"].keys() <= {"artist", 'the "n"'}
        return value.keys() == {"intent", "slots"} and value["intent"] in ("play", "rate")
    if name == "nested":
        return (
            list(value) == ["kind", "items", "code", "id", "on"]
            and value["kind"] in SCHEMAS[name]["properties"]["kind"]["enum"]
            and 2 <= len(value["items"]) <= 3
            and all(10 <= item["n"] <= 99 for item in value["items"])
            and re.fullmatch("(ab)*c", value["code"]) is not None
            and re.search("x[0-9]{3}", value["id"]) is not None
            and datetime.date.fromisoformat(value["on"]) is not None
        )
    while name == "recursive" and value is not None:
        assert set(value) == {"größe", "next"} and isinstance(value["größe"], (int, float))
        value = value["next"]
    return value is None or isinstance(value, dict)


def test_every_answer_is_of_its_schema_within_its_tokens() -> None:
    loaded, tokenizer = open_model(Opening("starter"))
    prompts = [tokenizer.prompt_ids([Turn("user", text)]) for text in PROMPTS]
    drawings = [Drawing(), Drawing(temperature=1.5), Drawing(temperature=1.5, seed=3)]
    for name, schema in SCHEMAS.items():
        generator = Generator(loaded, tokenizer, schema=schema)
        for answer in generator.answers(prompts, [96] * 3, drawings):
            assert answer.finish_reason == "stop", (name, answer.text)
            assert is_valid(json.loads(answer.text), name), (name, answer.text)
            assert answer.completion_tokens < 96
    short = generator.stream(prompts[0], max_tokens=1)
    assert ("".join(short), short.finish_reason) == ("[", "length")


def admits(grammar: Grammar, text: str) -> bool:
    matcher, ids = grammar.matcher.deep_copy(), grammar.tokens.ll.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


def test_keys_come_in_any_order_where_they_did_in_the_data() -> None:
    shape, held = Shape(), {"intent": "play", "slots": {"a": "x", "b": 1}}
    for value in (held, {"intent": "rate", "slots": {"b": 2, "a": "y"}}):
        shape.add(value)
    schema = shape.schema()
    assert "x-key-order" not in schema
    assert schema["properties"]["slots"]["x-key-order"] == "any"
    grammar = Grammar(vocabulary("gpt2"), schema)
    right = [
        '{"intent": "play", "slots": {"a": "", "b": 1}}',
        '{"slots":{"b":2,"a":"x"},"intent":"i"}',
    ]
    wrong = [
        '{"intent": "p", "slots": {"a": "", "a": ""}}',
        '{"intent": "p", "slots": {"b": 1}}',
        "{}",
    ]
    assert [admits(grammar, text) for text in (*right, *wrong)] == [True] * 2 + [False] * 3


def vocabulary(kind: str) -> Tokens:
    made = fast(kind)
    return Tokens(made.backend_tokenizer, 512, [made.eos_token_id])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_vocabulary_is_bytes_and_every_schema_has_an_end(kind: str) -> None:
    tokens = vocabulary(kind)
    assert all(tokens.ll.decode_bytes([i]) == char.encode() for char, i in tokens.ascii.items())
    for name, schema in SCHEMAS.items():
        grammar = Grammar(tokens, schema)
        way = grammar.shortest(grammar.matcher)
        assert way is not None and way[-1] == tokens.end
        assert is_valid(json.loads(tokens.ll.decode_str(way[:-1])), name)


@pytest.mark.parametrize(
    ("schema", "told"),
    (
        ({"not": {}}, '#: Unimplemented keys: ["not"]'),
        ({"properties": {"a": {"items": {"contains": {}}}}}, "#/properties/a/items: "),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"format": "iban"}}}, "Unknown format: iban"),
        ({"items": {"$ref": "http://203.0.113.1/a"}}, "#/items: "),
        (
            {"anyOf": [{"const": 1}, {"type": "string", "pattern": "(?=a)b"}]},
            "#/anyOf/1: regex parse error",
        ),
        ({"properties": {"a": 3}}, "#/properties/a: "),
    ),
)
def test_what_cannot_be_kept_to_is_refused_by_its_path(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError) as raised:
        Grammar(vocabulary("gpt2"), schema)
    assert told in str(raised.value)
