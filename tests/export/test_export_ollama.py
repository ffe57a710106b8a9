"""Ollama folders: the Modelfile parses, and its Go template writes what the Jinja one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import mlx_itune
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, built_in, load_tokenizer
from mlx_itune.export.ollama import common_system, go_template, modelfile
from mlx_itune.kit.errors import ModelError, UsageError
from tests import gguf_vocabularies as vocabularies
from tests.export.go_eval import parse_modelfile, render

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
    """A tiny tokenizer with a given template; `bos` makes it start every text with <s>."""

    def made(template: str, *, bos: bool = False) -> ChatTokenizer:
        tokenizer = vocabularies.byte_level("gpt-2")
        if bos:
            start = [("<s>", tokenizer.token_to_id("<s>"))]
            tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
        return load_tokenizer(vocabularies.write(tokenizer, tmp_path, template=template))

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


CHATML = built("chatml")
TEMPLATES = [LLAMA2, DEFAULT_SYSTEM, ODD_TEXT, built("alpaca"), CHATML, built("vicuna")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_go_template_writes_what_jinja_writes(make: Any, template: str) -> None:
    tokenizer = make(template)
    for system in (False, True):
        same(tokenizer, go_template(tokenizer), system=system)


def test_odd_and_known_templates(make: Any) -> None:
    bare = make(NO_SYSTEM)
    same(bare, go_template(bare), system=False)
    starter = load_tokenizer(Path(mlx_itune.__file__).parent / "model/starter")
    for system in (False, True):
        same(starter, go_template(starter), system=system)
    # A BOS that the runtime adds is left to it.
    begun = make("{{ bos_token }}" + CHATML, bos=True)
    template = go_template(begun)
    assert "<s>" not in template
    same(begun, template, system=True, dropped="<s>")
    written = make("{{ bos_token }}" + CHATML)
    same(written, go_template(written), system=True)
    # A reply that was begun is continued; turns in an order that no training has are closed, too.
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is"}]
    assert render(template, said).endswith("<|im_start|>assistant\nIt is")
    late = [*said, {"role": "system", "content": "S"}]
    assert "It is</s>\n<|im_start|>system\nS</s>\n" in render(template, late)


@pytest.mark.parametrize("template", [BY_PLACE, BY_WORDS, DATED], ids=["place", "words", "date"])
def test_what_has_no_go_form(make: Any, template: str) -> None:
    with pytest.raises(ModelError):
        go_template(make(template))


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
    for text, told in (('a """\nFROM evil', "ends in"), ("a\u200db", r"U\+200D")):
        with pytest.raises(UsageError, match=told):
            modelfile("m.gguf", system=text)


def test_the_system_prompt_of_all_conversations() -> None:
    def rows(*systems: str | None) -> list[Conversation]:
        said = (Turn("user", "a"), Turn("assistant", "b"))
        return [Conversation((*([Turn("system", s)] if s else []), *said), "x:1") for s in systems]

    assert common_system(rows("S", "S")) == "S"
    for unlike in (rows("S", None), rows("S", "T"), []):
        assert common_system(unlike) is None
