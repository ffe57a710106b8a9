"""The word table gives the tokenizer's own tokens, or leaves the text to it."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import SPECIALS, TOKENIZERS, fast
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from mlx_itune.dataset.tokens.words import WordEncoder

STARTER = Path(__file__).parents[2] / "mlx_itune/model/starter/tokenizer.json"
PIECES = [
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "the", " patient", "metformin", "500", "3.14", "I'm",
    "we'LL", "don't", "...", "!?", "(", ")", "é", "日本", "🦙", "▁", "\x1c", "\u00a0", "x" * 30,
    "<<48/2=24>>", "ABC", "_", "'s", "=", "\x00", *SPECIALS[:6],
]  # fmt: skip


def texts(count: int, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    return ["".join(dice.choices(PIECES, k=dice.randrange(12))) for _ in range(count)]


def check(backend: Tokenizer, count: int = 1500) -> int:
    """Every text the encoder takes comes out as the tokenizer has it; how many it takes."""
    words = WordEncoder.of(backend)
    assert words is not None
    taken = [text for text in texts(count) if words.takes(text)]
    own = backend.encode_batch(taken, add_special_tokens=False)
    for text, encoding, (ids, starts, ends, cuts) in zip(
        taken, own, words.encode(taken), strict=True
    ):
        assert ids.tolist() == encoding.ids, repr(text)
        assert np.all(starts <= ends) and np.all(np.diff(starts) >= 0)
        assert int(ends.max(initial=0)) <= len(text)
        for cut in () if cuts is None else cuts.tolist():
            before = backend.encode(text[:cut], add_special_tokens=False).ids
            assert before == ids[: int(np.searchsorted(starts, cut))].tolist(), (text, cut)
    return len(taken)


def apart(kind: str) -> Tokenizer:
    """A tokenizer none of whose merges reaches over a word border, as Llama 2's."""
    state = json.loads(fast(kind).backend_tokenizer.to_str())
    joined = re.compile("[^▁]▁")
    merges = state["model"]["merges"]
    state["model"]["merges"] = [m for m in merges if not joined.search("".join(m))]
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "llama2_legacy"])
def test_tokens_are_the_tokenizers_own(kind):
    assert check(apart(kind)) > 300


@pytest.mark.parametrize("kind", ["llama2", "llama2_legacy"])
def test_a_vocabulary_that_joins_words_is_left_to_the_tokenizer(kind):
    assert WordEncoder.of(TOKENIZERS[kind]()) is None


def test_the_starters_tokens_are_its_own():
    assert check(Tokenizer.from_file(str(STARTER))) > 300


def test_character_ranges_are_the_tokenizers_own():
    backend = apart("llama2")
    words = WordEncoder.of(backend)
    for text in ["Hello  the patient", " a", "<s>the patient</s> is", "x\n\n  y"]:
        (found,) = words.encode([text])
        own = backend.encode(text, add_special_tokens=False).offsets
        mine = list(zip(found[1].tolist(), found[2].tolist(), strict=True))
        # The border before a text is no character of it; the tokenizer says it is the first one.
        assert [m if m[1] > m[0] else (m[0], m[0] + 1) for m in mine] == own


def test_other_kinds_of_tokenizer_are_refused():
    lossy = fast("gpt2").backend_tokenizer
    lossy.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\w+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert WordEncoder.of(lossy) is None  # between two matches anything could be one word
    greedy = apart("llama2")
    greedy.add_special_tokens([AddedToken("<pad>", special=True, lstrip=True)])
    assert WordEncoder.of(greedy) is None  # takes the space before it
    assert WordEncoder.of(Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))) is None
