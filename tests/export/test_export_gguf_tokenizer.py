"""GGUF tokenizers: every key, the right names, refusals; llama.cpp itself is in tests/parity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_vocabularies as vocabularies
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers import pre_tokenizers as pre

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.gguf.tokenizer import add_tokenizer, adds_bos, tokenizer_limits
from mlx_itune.export.gguf.tokenizer_check import check_tokenizer
from mlx_itune.export.gguf.verify import Reader
from mlx_itune.kit.errors import ModelError
from tests.torture import texts

STARTER = Path(__file__).parents[2] / "mlx_itune/model/starter"
PLAIN = [t for t in texts(120, seed=3, marks=vocabularies.MARKUP) if t]


def write(folder: Path, out: Path, *, name: str | None = None) -> dict[str, Any]:
    """A file with the tokenizer's keys alone; the keys, as the gguf package reads them."""
    tokenizer = load_tokenizer(folder)
    writer = gguf.GGUFWriter(str(out), "llama")
    if name is not None:
        writer.add_name(name)
    config = json.loads((folder / "config.json").read_text())
    add_tokenizer(writer, tokenizer, config["vocab_size"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Reader(out).keys()


@pytest.mark.parametrize("name", sorted(vocabularies.BYTE_LEVEL))
def test_the_pre_tokenizer_is_known_by_what_it_does(name: str, tmp_path: Path) -> None:
    tokenizer = vocabularies.byte_level(vocabularies.BYTE_LEVEL[name]())
    folder = vocabularies.write(tokenizer, tmp_path / "model")
    keys = write(folder, tmp_path / "v.gguf")
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == name
    checked = check_tokenizer(Reader(tmp_path / "v.gguf").keys(), load_tokenizer(folder), PLAIN)
    assert checked.prompts == 6 and checked.tokens > checked.texts > 20


@pytest.mark.parametrize("scheme", ["prepend", "always", "never", "first"])
def test_sentencepiece(scheme: str, tmp_path: Path) -> None:
    tokenizer = vocabularies.sentencepiece(scheme)
    folder = vocabularies.write(tokenizer, tmp_path / "model", template=vocabularies.INST)
    keys = write(folder, tmp_path / "v.gguf")
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] == (scheme in ("prepend", "always"))
    assert (scheme == "first") == bool(tokenizer_limits(load_tokenizer(folder)))
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    by_name = dict(zip(tokens, kinds, strict=True))
    assert by_name["<unk>"] == gguf.TokenType.UNKNOWN
    assert by_name["<0x0A>"] == gguf.TokenType.BYTE
    assert by_name["<s>"] == gguf.TokenType.CONTROL
    assert by_name["<tool_call>"] == gguf.TokenType.USER_DEFINED
    assert kinds[-1] == gguf.TokenType.UNUSED
    assert len(tokens) == json.loads((folder / "config.json").read_text())["vocab_size"]
    check_tokenizer(Reader(tmp_path / "v.gguf").keys(), load_tokenizer(folder), PLAIN)


def test_a_space_before_the_first_word_only_is_told_where_later_turns_need_none(
    tmp_path: Path,
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ m.content + '\\n\\n### Response:\\n' }}{% endif %}{% endfor %}"
    )
    tokenizer = vocabularies.sentencepiece("first")
    folder = vocabularies.write(tokenizer, tmp_path / "model", template=template)
    assert write(folder, tmp_path / "v.gguf")["tokenizer.ggml.add_space_prefix"]
    loaded = load_tokenizer(folder)
    (limit,) = tokenizer_limits(loaded)
    assert "later turns" in limit
    # One question with and without a system turn is read as trained; what follows </s> is not.
    assert check_tokenizer(Reader(tmp_path / "v.gguf").keys(), loaded, PLAIN).prompts == 2


def test_the_starter(tmp_path: Path) -> None:
    keys = write(STARTER, tmp_path / "v.gguf")
    tokenizer = load_tokenizer(STARTER)
    assert keys["tokenizer.ggml.pre"] == "smollm"
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.eot_token_id"] == 0
    assert keys["tokenizer.chat_template"] == tokenizer.template_text
    assert keys["tokenizer.ggml.add_bos_token"] is False
    check_tokenizer(Reader(tmp_path / "v.gguf").keys(), tokenizer, PLAIN)


def test_ends_and_names_that_llama_cpp_does_not_give_a_template(tmp_path: Path) -> None:
    tokenizer = vocabularies.byte_level(vocabularies.BYTE_LEVEL["qwen2"]())
    folder = vocabularies.write(
        tokenizer, tmp_path / "model", template="{{ bos_token }}{{ pad_token }}" + vocabularies.INST
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    settings |= {"pad_token": "<|im_start|>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    ends = [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|im_end|>")]
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    keys = write(folder, tmp_path / "v.gguf")
    template = keys["tokenizer.chat_template"]
    assert 'set bos_token = ""' in template and 'set pad_token = "<|im_start|>"' in template
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.eot_token_id"] == ends[0]
    assert keys["tokenizer.ggml.eom_token_id"] == ends[1]


@pytest.mark.parametrize("written", [True, False])
def test_bos_is_added_where_the_prompt_has_it(written: bool, tmp_path: Path) -> None:
    tokenizer = vocabularies.byte_level(vocabularies.BYTE_LEVEL["qwen2"]())
    from tokenizers.processors import TemplateProcessing

    start = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
    template = ("{{ bos_token }}" if written else "") + vocabularies.CHATML
    folder = vocabularies.write(tokenizer, tmp_path / "model", template=template)
    assert adds_bos(load_tokenizer(folder)) is written
    assert write(folder, tmp_path / "v.gguf")["tokenizer.ggml.add_bos_token"] is written


def test_words_are_looked_up_whole_only_where_that_is_the_same(tmp_path: Path) -> None:
    for kind, name in (("dbrx", "llama-bpe"), ("qwen2", "qwen2")):
        splitter = vocabularies.BYTE_LEVEL[kind]()
        tokenizer = vocabularies.byte_level(splitter, ignore_merges=True)
        folder = vocabularies.write(tokenizer, tmp_path / kind)
        # Every trained token is reached by merging, so qwen2, which only merges, is equal.
        assert write(folder, tmp_path / "v.gguf")["tokenizer.ggml.pre"] == name
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:-40]
    folder = vocabularies.write(Tokenizer.from_str(json.dumps(state)), tmp_path / "cut")
    with pytest.raises(ModelError, match="makes a difference"):
        write(folder, tmp_path / "v.gguf")


def _state(change: Callable[[dict[str, Any]], object], base: Tokenizer) -> Tokenizer:
    state = json.loads(base.to_str())
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def _qwen() -> Tokenizer:
    return vocabularies.byte_level(vocabularies.BYTE_LEVEL["qwen2"]())


def _lower() -> Tokenizer:
    tokenizer = _qwen()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def _whole_word() -> Tokenizer:
    tokenizer = _qwen()
    tokenizer.add_tokens([AddedToken("zebra", single_word=True, normalized=False)])
    return tokenizer


def _one_merge_less() -> Tokenizer:
    return _state(lambda s: s["model"]["merges"].pop(5), vocabularies.sentencepiece("never"))


REFUSED: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "unknown splitter": (
        lambda: vocabularies.byte_level(
            pre.Sequence([pre.Punctuation(), pre.ByteLevel(add_prefix_space=False)])
        ),
        "knows no pre-tokenizer",
    ),
    "space in front": (
        lambda: vocabularies.byte_level(pre.ByteLevel(add_prefix_space=True)),
        "knows no pre-tokenizer",
    ),
    "lower case": (_lower, "does not normalize"),
    "whole word": (_whole_word, "as a whole word only"),
    "missing merge": (_one_merge_less, "is no merge of this tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_read_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    make, said = REFUSED[case]
    folder = vocabularies.write(make(), tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        write(folder, tmp_path / "v.gguf")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fewer_rows_than_tokens(tmp_path: Path) -> None:
    folder = vocabularies.write(_qwen(), tmp_path / "model", rows=-1)
    with pytest.raises(ModelError, match="belongs to the model"):
        write(folder, tmp_path / "v.gguf")


def test_an_ordinary_token_that_looks_like_an_end(tmp_path: Path) -> None:
    """Qwen's vocabulary has such a token, which no text yields."""

    def change(state: dict[str, Any]) -> None:
        size = max(state["model"]["vocab"].values(), default=0) + 1
        size = max(size, *(t["id"] + 1 for t in state["added_tokens"]))
        state["model"]["vocab"]["<|eot_id|>"] = size

    folder = vocabularies.write(_state(change, _qwen()), tmp_path / "model")
    keys = write(folder, tmp_path / "v.gguf")
    assert "<|eot_id|>" not in keys["tokenizer.ggml.tokens"]


def test_tokens_that_swallow_spaces_as_phi_3s_do(tmp_path: Path) -> None:
    def swallowing(*keep: str) -> Tokenizer:
        base = json.loads(vocabularies.sentencepiece("prepend").to_str())
        for token in base["added_tokens"]:
            token["rstrip"] = token["content"] not in keep
        return Tokenizer.from_str(json.dumps(base))

    tokenizer = swallowing("<unk>", "<s>", "<|endoftext|>")
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    folder = vocabularies.write(tokenizer, tmp_path / "model", template=vocabularies.INST)
    assert write(folder, tmp_path / "v.gguf")["general.name"] == "phi-3"
    assert write(folder, tmp_path / "v.gguf", name="Notes")["general.name"] == "Notes (phi-3)"
    assert write(folder, tmp_path / "v.gguf", name="Phi-3-x")["general.name"] == "Phi-3-x"
    odd = vocabularies.write(swallowing("<unk>"), tmp_path / "odd")
    with pytest.raises(ModelError, match="swallow"):
        write(odd, tmp_path / "v.gguf")


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    """A file whose merges, names or template are another tokenizer's."""
    one = vocabularies.write(_qwen(), tmp_path / "one")
    write(one, tmp_path / "v.gguf")
    other = vocabularies.byte_level(vocabularies.BYTE_LEVEL["gpt-2"]())
    for tokenizer, template in ((other, vocabularies.CHATML), (_qwen(), vocabularies.INST)):
        folder = vocabularies.write(tokenizer, tmp_path / "other", template=template)
        with pytest.raises(ModelError):
            check_tokenizer(Reader(tmp_path / "v.gguf").keys(), load_tokenizer(folder))
