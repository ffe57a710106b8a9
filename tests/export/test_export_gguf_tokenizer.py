"""GGUF tokenizers: every key, the right names, refusals; llama.cpp itself is in tests/parity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.gguf.tokenizer import (
    TokenizerCheck,
    adds_bos,
    check_tokenizer,
    tokenizer_limits,
)
from mlx_itune.export.gguf.verify import Reader
from mlx_itune.kit.errors import ModelError
from tests import gguf_vocabularies as vocabularies
from tests.torture import texts

STARTER = Path(__file__).parents[2] / "mlx_itune/model/starter"
PLAIN = [t for t in texts(120, seed=3, marks=vocabularies.MARKUP) if t]
Write = Callable[..., dict[str, Any]]
Change = Callable[[dict[str, Any]], object]


def write_keys(folder: Path, name: str | None = None) -> dict[str, Any]:
    """The tokenizer's keys, as the gguf package reads them from a file."""
    vocabularies.write_gguf(folder, folder / "v.gguf", name)
    return Reader(folder / "v.gguf").keys()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The keys of a tokenizer in a model directory, `tmp_path`/model."""

    def keys(tokenizer: Tokenizer, *, name: str | None = None, **options: Any) -> dict[str, Any]:
        return write_keys(vocabularies.write(tokenizer, tmp_path / "model", **options), name)

    return keys


def checked(folder: Path) -> TokenizerCheck:
    return check_tokenizer(Reader(folder / "v.gguf").keys(), load_tokenizer(folder), PLAIN)


def qwen() -> Tokenizer:
    return vocabularies.byte_level("qwen2")


@pytest.mark.parametrize("name", sorted(vocabularies.BYTE_LEVEL))
def test_the_pre_tokenizer_is_known_by_what_it_does(
    name: str, write: Write, tmp_path: Path
) -> None:
    keys = write(vocabularies.byte_level(name))
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == name
    found = checked(tmp_path / "model")
    assert found.prompts == 6 and found.tokens > found.texts > 20


@pytest.mark.parametrize("scheme", ["prepend", "always", "never", "first"])
def test_sentencepiece(scheme: str, write: Write, tmp_path: Path) -> None:
    tokenizer = vocabularies.sentencepiece(scheme)
    keys = write(tokenizer, template=vocabularies.INST)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] == (scheme in ("prepend", "always"))
    limits = tokenizer_limits(load_tokenizer(tmp_path / "model"))
    assert (scheme == "first") == bool(limits)
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    by_name = dict(zip(tokens, map(gguf.TokenType, kinds), strict=True))
    for token, kind in (
        ("<unk>", "UNKNOWN"),
        ("<0x0A>", "BYTE"),
        ("<s>", "CONTROL"),
        ("<tool_call>", "USER_DEFINED"),
        (tokens[-1], "UNUSED"),
    ):
        assert by_name[token].name == kind
    assert len(tokens) == tokenizer.get_vocab_size() + 64
    checked(tmp_path / "model")


def test_a_space_before_the_first_word_only_is_told_where_later_turns_need_none(
    write: Write, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ m.content + '\\n\\n### Response:\\n' }}{% endif %}{% endfor %}"
    )
    keys = write(vocabularies.sentencepiece("first"), template=template)
    assert keys["tokenizer.ggml.add_space_prefix"]
    (limit,) = tokenizer_limits(load_tokenizer(tmp_path / "model"))
    assert "later turns" in limit
    # One question with and without a system turn is read as trained; what follows </s> is not.
    assert checked(tmp_path / "model").prompts == 2


def test_the_starter(tmp_path: Path) -> None:
    shutil.copytree(STARTER, tmp_path / "model")
    keys = write_keys(tmp_path / "model")
    assert keys["tokenizer.ggml.pre"] == "smollm"
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.eot_token_id"] == 0
    assert keys["tokenizer.chat_template"] == load_tokenizer(STARTER).template_text
    checked(tmp_path / "model")


def test_ends_and_names_that_llama_cpp_does_not_give_a_template(tmp_path: Path) -> None:
    tokenizer, template = qwen(), "{{ bos_token }}{{ pad_token }}" + vocabularies.INST
    folder = vocabularies.write(tokenizer, tmp_path / "model", template=template)
    ends = [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|im_end|>")]
    for file, changes in (
        ("tokenizer_config", {"bos_token": None, "pad_token": "<|im_start|>", "eos_token": "</s>"}),
        ("config", {"eos_token_id": ends}),
    ):
        settings = json.loads((folder / f"{file}.json").read_text()) | changes
        (folder / f"{file}.json").write_text(json.dumps(settings))
    keys = write_keys(folder)
    template = keys["tokenizer.chat_template"]
    assert 'set bos_token = ""' in template and 'set pad_token = "<|im_start|>"' in template
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.eot_token_id"] == ends[0]
    assert keys["tokenizer.ggml.eom_token_id"] == ends[1]


@pytest.mark.parametrize("written", [True, False])
def test_bos_is_added_where_the_prompt_has_it(written: bool, write: Write, tmp_path: Path) -> None:
    tokenizer = qwen()
    start = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
    template = ("{{ bos_token }}" if written else "") + vocabularies.CHATML
    assert write(tokenizer, template=template)["tokenizer.ggml.add_bos_token"] is written
    assert adds_bos(load_tokenizer(tmp_path / "model")) is written


def test_words_are_looked_up_whole_only_where_that_is_the_same(write: Write) -> None:
    for kind, name in (("dbrx", "llama-bpe"), ("qwen2", "qwen2")):
        tokenizer = vocabularies.looking_up(vocabularies.byte_level(kind))
        # Every trained token is reached by merging, so qwen2, which only merges, is equal.
        assert write(tokenizer)["tokenizer.ggml.pre"] == name
    fewer = {"merges": json.loads(tokenizer.to_str())["model"]["merges"][:-40]}
    with pytest.raises(ModelError, match="makes a difference"):
        write(vocabularies.changed(tokenizer, lambda state: state["model"].update(fewer)))


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (qwen, lambda s: s.update(normalizer={"type": "Lowercase"}), "does not normalize"),
        (qwen, lambda s: s.update(pre_tokenizer=BYTES), "knows no pre-tokenizer"),
        (qwen, lambda s: s["pre_tokenizer"]["pretokenizers"].pop(0), "knows no pre-tokenizer"),
        (qwen, lambda s: s["added_tokens"][-1].update(single_word=True), "as a whole word only"),
        (
            lambda: vocabularies.sentencepiece("never"),
            lambda s: s["model"]["merges"].pop(5),
            "is no merge of this tokenizer",
        ),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(
    make: Callable[[], Tokenizer], change: Change, said: str, write: Write
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        write(vocabularies.changed(make(), change))
    assert "\n" not in str(caught.value)


def test_fewer_rows_than_tokens(write: Write) -> None:
    with pytest.raises(ModelError, match="belongs to the model"):
        write(qwen(), rows=-1)


def test_an_ordinary_token_that_looks_like_an_end(write: Write) -> None:
    """Qwen's vocabulary has such a token, which no text yields."""
    tokenizer, looks_like = qwen(), {"<|eot_id|>": qwen().get_vocab_size()}
    keys = write(vocabularies.changed(tokenizer, lambda s: s["model"]["vocab"].update(looks_like)))
    assert "<|eot_id|>" not in keys["tokenizer.ggml.tokens"]


def test_tokens_that_swallow_spaces_as_phi_3s_do(write: Write) -> None:
    tokenizer = vocabularies.swallowing("<unk>", "<s>")
    for given, name in ((None, "phi-3"), ("Notes", "Notes (phi-3)"), ("Phi-3-x", "Phi-3-x")):
        assert write(tokenizer, template=vocabularies.INST, name=given)["general.name"] == name
    with pytest.raises(ModelError, match="swallow"):
        write(vocabularies.swallowing("<unk>"))


def test_the_check_finds_what_is_wrong(write: Write, tmp_path: Path) -> None:
    """A file whose merges, names or template are another tokenizer's."""
    keys = write(qwen())
    other = vocabularies.byte_level("gpt-2")
    for tokenizer, template in ((other, vocabularies.CHATML), (qwen(), vocabularies.INST)):
        folder = vocabularies.write(tokenizer, tmp_path / "other", template=template)
        with pytest.raises(ModelError):
            check_tokenizer(keys, load_tokenizer(folder))
