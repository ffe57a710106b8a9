"""What a bundle promises besides its files: one answer, and the form of all of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from mlx_itune.export.gbnf import to_gbnf
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import ANY_ORDER
from tests.cli.conftest import Cli, cli  # noqa: F401
from tests.small_tokenizers import fast

TICKET = {
    "type": "object",
    "properties": {
        "a": {"enum": ["x", 'say "é"', None]},
        "b": {"type": ["integer", "null"]},
        "c": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["b"],
    "additionalProperties": False,
}
FREE = {**TICKET, "required": ["b", "c"], **ANY_ORDER}
LIST = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    (
        (
            TICKET,
            ['{"b": 1}', '{\n  "a": "say \\"é\\"", "b":null}', '{"b":-20,"c":[0.5, 1e3]}'],
            ["{}", '{"b":1,"c":[]}', '{"b":1.5}', '{"b":1,"a":"x"}', '{"b":1,"d":2}', '{"a":"x",}'],
        ),
        (
            FREE,
            ['{"b":1,"c":[2]}', '{"c":[2], "a":null, "b":1}', '{"b":1,"b":2,"c":[1]}'],
            ["{}", '{"b":1}', '{"c":[1],"a":null}', '{"b":1,"c":[2],}'],
        ),
        (LIST, ['{"next":{"next":null}}'], ['{"next":{}}', '{"next":1}']),
        (
            {"type": "object", "additionalProperties": {"type": "boolean"}},
            ["{}", '{"k":true, "l":false}'],
            ['{"k":1}'],
        ),
        ({}, ["[1, {}]", '"x"'], ["x"]),
    ),
)
def test_the_grammar_lets_through_what_the_schema_does(
    schema: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    made = fast("gpt2")
    tokens = LLTokenizer(made.backend_tokenizer.to_str(), eos_token=made.eos_token_id)
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(any_to_lark(to_gbnf(schema))))
    assert not matcher.is_error(), matcher.get_error()

    def admits(text: str) -> bool:
        ids = tokens.tokenize_str(text)
        whole = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
        return matcher.reset() and whole

    assert [text for text in right if not admits(text)] == []
    assert [text for text in wrong if admits(text)] == []


def test_no_grammar_for_what_it_cannot_say() -> None:
    with pytest.raises(DataError, match="#/properties/a/pattern"):
        to_gbnf({"type": "object", "properties": {"a": {"type": "string", "pattern": "a"}}})


def test_a_bundle_answers_as_its_test_vector_says(
    cli: Cli,  # noqa: F811
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    schema, out = tmp_path / "schema.json", tmp_path / "bundle"
    schema.write_text(json.dumps(TICKET))
    export = ("export", "--model", tiny_model_dir, "--to", "mlx", "--schema", schema)
    assert "--bundle" in cli.refused(*export, "--out", tmp_path / "plain", code=2)
    cli(*export, "--out", out, "--bundle")
    cli("verify", out)
    assert json.loads((out / "schema.json").read_text()) == TICKET
    assert (out / "grammar.gbnf").read_text() == to_gbnf(TICKET)
    vector = json.loads((out / "vector.json").read_text())
    generated = cli.json(
        "generate", "--model", out / tiny_model_dir.name, "--max-tokens", 64, "Hello, who are you?"
    )
    assert generated["text"] == vector["answer"]
    told = (out / "README.md").read_text()
    assert "check.py" in told and "grammar.gbnf" in told

    def check() -> tuple[Any, str]:
        assert "mlx_itune" not in (out / "check.py").read_text()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(out / "check.py"), run_name="__main__")
        return left.value.code, cli.capsys.readouterr().out

    most = len(vector["answer_ids"])
    assert check() == (0, f"{most} of {most} tokens as in vector.json\n")
    vector["answer_ids"][3] += 1
    (out / "vector.json").write_text(json.dumps(vector))
    assert check() == (1, f"3 of {most} tokens as in vector.json\n")
