"""llama.cpp tokenizes as transformers does, from our GGUF: 10,000 texts per tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.export.gguf.tokenizer import probe_prompts, tokenizer_limits
from mlx_itune.export.gguf.tokenizer_algorithm import APPROXIMATE
from tests import gguf_vocabularies as vocabularies
from tests.torture import characters, texts

pytestmark = pytest.mark.parity
llama_cpp = pytest.importorskip("llama_cpp")

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "mlx_itune/model/starter"


class Pair:
    """The same tokenizer in transformers and in llama.cpp."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.chat = vocabularies.write_gguf(folder, out)
        self.llama = llama_cpp.Llama(str(out), vocab_only=True, verbose=False)

    def differing(self, said: Sequence[str], *, special: bool) -> list[str]:
        """Texts with other ids in llama.cpp; `special`: control strings are tokens."""
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(self.chat.hf.backend_tokenizer.to_str())
        backend.encode_special_tokens = not special
        wanted = [e.ids for e in backend.encode_batch_fast(list(said), add_special_tokens=False)]
        return [
            text
            for text, ids in zip(said, wanted, strict=True)
            if self.llama.tokenize(text.encode(), add_bos=False, special=special) != ids
        ]


def torture(marks: Sequence[str]) -> list[str]:
    return texts(10_000, seed=1, marks=marks)


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    def made(tokenizer: Any, **options: Any) -> Pair:
        folder = vocabularies.write(tokenizer, tmp_path / "model", **options)
        return Pair(folder, tmp_path / "vocabulary.gguf")

    return made


MARKS = (*vocabularies.SPECIAL, *vocabularies.MARKUP)


INST = {"template": vocabularies.INST}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    **{
        name: (lambda name=name: vocabularies.byte_level(name), {})
        for name in vocabularies.BYTE_LEVEL
    },
    "looked up before merging": (
        lambda: vocabularies.looking_up(vocabularies.byte_level("dbrx")),
        {},
    ),
    **{
        scheme: (lambda scheme=scheme: vocabularies.sentencepiece(scheme), INST)
        for scheme in ("prepend", "always", "never")
    },
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind(pair: Any, name: str, special: bool) -> None:
    make, options = KINDS[name]
    both = pair(make(), **options)
    said = torture(MARKS)
    if name in APPROXIMATE:
        # A tenth: llama.cpp takes milliseconds per text for these.
        assert tokenizer_limits(both.chat)
        said = [t for t in said[::10] if t.isascii()]
    assert both.differing(said, special=special) == []


def test_a_space_before_the_first_word_only(pair: Any) -> None:
    """Prompts as the template writes them are equal; plain text has to bring its space."""
    both = pair(vocabularies.sentencepiece("first"), template=vocabularies.INST)
    said = [t for t in torture(()) if not any(m in t for m in ("<unk>", *MARKS))]
    prompts = [f"<s>[INST] {t} [/INST] {t}</s>[INST] {t} [/INST]" for t in said]
    assert both.differing(prompts, special=True) == []
    assert both.differing(probe_prompts(both.chat), special=True) == []
    assert any("no space" in limit for limit in tokenizer_limits(both.chat))
    encode = both.chat.hf.backend_tokenizer.encode
    for text in said:
        if text and not text.startswith((" ", "▁")):
            ids = encode(text, add_special_tokens=False).ids
            assert both.llama.tokenize(f" {text}".encode(), add_bos=False, special=True) == ids


@pytest.mark.parametrize("special", [True, False])
def test_the_starter(tmp_path: Path, special: bool) -> None:
    both = Pair(STARTER, tmp_path / "starter.gguf")
    marks = [t.content for t in both.chat.hf.added_tokens_decoder.values()]
    assert both.differing(torture(marks), special=special) == []


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_swallow_spaces_as_phi_3s_do(pair: Any, special: bool) -> None:
    both = pair(vocabularies.swallowing("<unk>", "<s>"))
    marks = (*MARKS, *(f"{mark}\n" for mark in MARKS))
    # llama.cpp strips ASCII white space, transformers all of it.
    said = [t for t in torture(marks) if t.isascii()]
    assert both.differing(said, special=special) == []
    assert both.differing(probe_prompts(both.chat), special=True) == []


@pytest.mark.parametrize("kind", ["dbrx", "prepend"])
def test_every_character_of_every_plane(pair: Any, kind: str) -> None:
    said = [f"a{c}b{c}1{c}{c} {c}'{c} " for c in characters()]
    assert pair(KINDS[kind][0]()).differing(said, special=True) == []


def test_composed_text_is_equal_where_the_tokenizer_composes(pair: Any) -> None:
    from tokenizers import normalizers

    tokenizer = vocabularies.byte_level("qwen2")
    tokenizer.normalizer = normalizers.NFC()
    both = pair(tokenizer)
    assert any("NFC" in limit for limit in tokenizer_limits(both.chat))
    composed = [unicodedata.normalize("NFC", t) for t in torture(MARKS)]
    assert both.differing(composed, special=True) == []


def test_tokens_at_the_ends(pair: Any) -> None:
    both = pair(vocabularies.byte_level("qwen2"))
    chat, llama = both.chat, both.llama
    assert llama.token_eos() == chat.closing_id
    model = llama._model.model
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    for number in chat.eos_ids:
        assert llama_cpp.llama_vocab_is_eog(vocabulary, number)
    assert llama.metadata["tokenizer.chat_template"] == chat.template_text
    assert not llama_cpp.llama_vocab_get_add_bos(vocabulary)
    said = "Ünïcödé 世界 <tool_call>x</tool_call>"
    assert llama.detokenize(llama.tokenize(said.encode(), add_bos=False)).decode() == said
