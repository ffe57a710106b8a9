"""Ollama folders: the Modelfile parses, and its Go template writes what the Jinja one writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.templates import built_in
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.export.consumers import consumer_warnings
from mlx_itune.export.shipping.go_template import go_template
from mlx_itune.export.shipping.to_ollama import common_system, export_ollama, modelfile
from mlx_itune.kit.errors import ModelError, StorageError, UsageError
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
def test_what_has_no_go_form_is_left_out_and_said(make: Any, template: str, tmp_path: Path) -> None:
    tokenizer = make(template)
    with pytest.raises(ModelError):
        go_template(tokenizer)
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF....")
    result = export_ollama(gguf, tmp_path / "out", tokenizer=tokenizer, config={})
    assert not result.template
    assert "TEMPLATE" not in parse_modelfile(result.modelfile)
    assert "no TEMPLATE was written" in result.notes[0]


def test_the_folder(make: Any, tmp_path: Path) -> None:
    tokenizer = make(built("chatml"))
    gguf, lora = tmp_path / "my model.gguf", tmp_path / "lora.gguf"
    gguf.write_bytes(b"GGUF base")
    lora.write_bytes(b"GGUF lora")
    system = 'You say "yes" or "no".\nNothing else: """ never"""!'
    result = export_ollama(
        gguf,
        tmp_path / "out",
        tokenizer=tokenizer,
        config={"max_position_embeddings": 2048},
        adapter_file=lora,
        generation={
            "temperature": 0.6,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
            "eos_token_id": 2,
        },
        system=system,
        licence="MIT\n\nSee the file.",
    )
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["Modelfile", "lora.gguf", "my model.gguf"]
    assert (tmp_path / "out/my model.gguf").read_bytes() == b"GGUF base"
    read = parse_modelfile((tmp_path / "out/Modelfile").read_text())
    assert read["FROM"] == ["./my model.gguf"]
    assert read["ADAPTER"] == ["./lora.gguf"]
    assert read["SYSTEM"] == [system]
    assert read["PARAMETER stop"] == ["<|end|>"]
    assert read["PARAMETER num_ctx"] == ["2048"]
    assert read["PARAMETER temperature"] == ["0.6"]
    assert read["PARAMETER repeat_penalty"] == ["1.1"]
    assert read["LICENSE"] == ["MIT\n\nSee the file."]
    assert result.artifact.format == "ollama" and gguf.exists()


def test_moving_takes_the_file_only_when_all_went_well(make: Any, tmp_path: Path) -> None:
    tokenizer = make(built("chatml"))
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF base")
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    with pytest.raises(StorageError):
        export_ollama(gguf, full, tokenizer=tokenizer, config={}, move=True)
    with pytest.raises(UsageError, match="U\\+200D"):
        export_ollama(
            gguf, tmp_path / "o", tokenizer=tokenizer, config={}, system="a\u200db", move=True
        )
    assert gguf.read_bytes() == b"GGUF base" and not (tmp_path / "o").exists()
    export_ollama(gguf, tmp_path / "o", tokenizer=tokenizer, config={}, move=True)
    assert (tmp_path / "o/m.gguf").read_bytes() == b"GGUF base" and not gguf.exists()


def test_what_is_no_gguf_is_refused(make: Any, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        export_ollama(file, tmp_path / "out", tokenizer=make(NO_SYSTEM), config={})
    assert not (tmp_path / "out").exists()


def test_a_text_that_would_end_its_quotes_is_refused() -> None:
    with pytest.raises(UsageError, match="ends in"):
        modelfile("m.gguf", system='a """\nFROM evil')


def test_the_system_prompt_of_all_conversations() -> None:
    one = [Turn("system", "S"), Turn("user", "a")]
    assert common_system([one, one]) == "S"
    assert common_system([one, [Turn("user", "a")]]) is None
    assert common_system([one, [Turn("system", "T"), Turn("user", "a")]]) is None
    assert common_system([]) is None


def test_known_limits_are_said_ahead() -> None:
    assert "no adapters" in consumer_warnings("lmstudio", {}, adapter_kind="lora")[0]
    assert "dora" in consumer_warnings("ollama", {}, adapter_kind="dora")[0]
    assert "U32" in consumer_warnings("ollama", {"quantization": {"bits": 4}})[0]
    assert consumer_warnings("ollama", {"model_type": "llama"}, adapter_kind="lora") == ()
