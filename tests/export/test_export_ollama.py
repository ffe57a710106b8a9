"""Ollama folders: the Modelfile parses, and its Go template writes what the Jinja one writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.tokens.chat_template import built_in
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.export.shipping.ollama import common_system, go_template, modelfile
from mlx_itune.kit.errors import ModelError, UsageError
from tests.conftest import write_tiny_tokenizer
from tests.export.go_eval import parse_modelfile, render

STARTER = Path(__file__).parents[2] / "mlx_itune/model/starter"
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + "
    "'\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|system|>\nBe helpful \"always\".<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
)
ODD_TEXT = (
    '{% for m in messages %}{{ \'""" {{ x }} \\\\n \t\' }}{{ m.role }}\u200d\u2028é: '
    '{{ m.content }}<|end|>\n{% endfor %}{{ \'"""\' }}'
)
BY_PLACE = (
    "{% for m in messages %}{{ loop.index }}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
)
BY_WORDS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if '世界' in m.content %}!{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}<|assistant|>"
)
DATED = "{{ strftime_now('%d') }}" + NO_SYSTEM


def conversations(*, system: bool) -> list[list[dict[str, str]]]:
    """One to five questions, contents with quotes, braces, lines and other scripts."""
    said = ['What is "it"?', "{{ x }}\n\n  y", "été 世界 😀", "<b>&amp;</b> \\n", "1. a\n2. b"]
    found = []
    for turns in range(1, 6):
        rows = [{"role": "system", "content": 'Be brief.\nSay """ok""".'}] if system else []
        for turn in range(turns):
            rows.append({"role": "user", "content": said[turn]})
            rows.append({"role": "assistant", "content": said[-turn]})
        found.append(rows[:-1])
    return found


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A tiny tokenizer with a given template; `bos` makes it start every text with <|system|>."""

    def made(template: str, *, bos: bool = False) -> ChatTokenizer:
        write_tiny_tokenizer(tmp_path)
        if bos:
            file = tmp_path / "tokenizer.json"
            state = json.loads(file.read_text())
            token = {"id": "<|pad|>", "ids": [0], "tokens": ["<|pad|>"]}
            start = {"SpecialToken": {"id": "<|pad|>", "type_id": 0}}
            text = {"Sequence": {"id": "A", "type_id": 0}}
            state["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [start, text],
                "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|pad|>": token},
            }
            file.write_text(json.dumps(state))
            settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
            settings["bos_token"] = "<|pad|>"
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "chat_template.jinja").write_text(template)
        return load_tokenizer(tmp_path)

    return made


def same(tokenizer: ChatTokenizer, template: str, *, system: bool, dropped: str = "") -> None:
    """Ollama's rendering, read back from a Modelfile, is the chat template's."""
    read = parse_modelfile(modelfile("m.gguf", template=template))["TEMPLATE"]
    assert read == [template]
    for messages in conversations(system=system):
        wanted = tokenizer.render_text(messages, add_generation_prompt=True)
        assert wanted.startswith(dropped)
        assert render(template, messages) == wanted.removeprefix(dropped)


def built(name: str) -> str:
    return built_in(name, adds_bos=False, knows_im_end=False)


@pytest.mark.parametrize(
    "template",
    [LLAMA2, DEFAULT_SYSTEM, ODD_TEXT, built("alpaca"), built("chatml"), built("vicuna")],
    ids=["llama2", "default-system", "odd", "alpaca", "chatml", "vicuna"],
)
@pytest.mark.parametrize("system", [False, True])
def test_the_go_template_writes_what_jinja_writes(make: Any, template: str, system: bool) -> None:
    tokenizer = make(template)
    same(tokenizer, go_template(tokenizer), system=system)


def test_a_template_without_a_system_turn(make: Any) -> None:
    tokenizer = make(NO_SYSTEM)
    same(tokenizer, go_template(tokenizer), system=False)


def test_the_starter() -> None:
    tokenizer = load_tokenizer(STARTER)
    same(tokenizer, go_template(tokenizer), system=False)
    same(tokenizer, go_template(tokenizer), system=True)


def test_a_bos_that_the_runtime_adds_is_left_to_it(make: Any) -> None:
    tokenizer = make("{{ bos_token }}" + built("chatml"), bos=True)
    template = go_template(tokenizer)
    assert "<|pad|>" not in template
    same(tokenizer, template, system=True, dropped="<|pad|>")
    bare = make("{{ bos_token }}" + built("chatml"))
    same(bare, go_template(bare), system=True)


def test_a_reply_that_was_begun_is_continued(make: Any) -> None:
    template = go_template(make(built("chatml")))
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is"}]
    assert render(template, begun).endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize("template", [BY_PLACE, BY_WORDS, DATED], ids=["place", "words", "date"])
def test_what_has_no_go_form(make: Any, template: str) -> None:
    tokenizer = make(template)
    with pytest.raises(ModelError):
        go_template(tokenizer)


def test_every_instruction_is_read_as_it_was_meant() -> None:
    system = 'You say "yes" or "no".\nNothing else: """ never"""!'
    text = modelfile(
        "model.gguf",
        adapter="lora.gguf",
        system=system,
        stops=("<|end|>",),
        parameters={"num_ctx": 2048, "temperature": 0.6},
        licence="MIT\n\nSee the file.",
    )
    assert parse_modelfile(text) == {
        "FROM": ["./model.gguf"],
        "ADAPTER": ["./lora.gguf"],
        "SYSTEM": [system],
        "PARAMETER num_ctx": ["2048"],
        "PARAMETER temperature": ["0.6"],
        "PARAMETER stop": ["<|end|>"],
        "LICENSE": ["MIT\n\nSee the file."],
    }


def test_a_text_that_would_end_its_quotes_is_refused() -> None:
    with pytest.raises(UsageError, match="ends in"):
        modelfile("m.gguf", system='a """\nFROM evil')
    with pytest.raises(UsageError, match="U\\+200D"):
        modelfile("m.gguf", system="a\u200db")


def test_the_system_prompt_of_all_conversations() -> None:
    def row(*turns: Turn) -> Conversation:
        return Conversation((*turns, Turn("user", "a"), Turn("assistant", "b")), "x:1")

    one = row(Turn("system", "S"))
    assert common_system([one, one]) == "S"
    assert common_system([one, row()]) is None
    assert common_system([one, row(Turn("system", "T"))]) is None
    assert common_system([]) is None
