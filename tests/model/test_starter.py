"""The embedded starter: small, stock, a base model."""

from __future__ import annotations

import json

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.model.loading import base
from starter.clinical.rows import rows


def test_it_is_small_and_quantized_and_mlx_lm_loads_it() -> None:
    import mlx_lm

    folder = base.resolve("starter")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 << 20
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama" and config["quantization"]["bits"] == 4
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    assert len(model.layers) == 4 and tokenizer.eos_token == "<|end|>"


def test_a_word_is_the_same_token_in_a_note_and_in_an_answer() -> None:
    tokenizer = load_tokenizer(base.resolve("starter"))
    turns = [Turn("user", "Note:\nMeds: zolpidem"), Turn("assistant", "zolpidem")]
    messages = [turn.message() for turn in turns]
    text = tokenizer.render_text(messages, add_generation_prompt=False)
    ids = tokenizer.encode_ids(text)
    (word,) = {tuple(tokenizer.encode_ids(" zolpidem"))}
    found = [i for i in range(len(ids)) if tuple(ids[i : i + len(word)]) == word]
    assert len(found) == 2
    assert [len(tokenizer.encode_ids(digits)) for digits in ("7", "70", "701")] == [1, 2, 3]


def test_as_it_comes_it_does_not_answer() -> None:
    from mlx_itune.inference.generate import Generator
    from mlx_itune.inference.scoring import exact_match

    loaded = base.load("starter")
    loaded.model.eval()
    tokenizer = load_tokenizer(loaded.path)
    chats = [row["messages"] for row in rows("test", 20, seed=9)]
    prompts = [
        tokenizer.prompt_ids([Turn(m["role"], m["content"]) for m in chat[:-1]])  # type: ignore[index]
        for chat in chats
    ]
    answers = Generator(loaded, tokenizer).batch(prompts, 48)
    right = sum(
        exact_match(answer, chat[-1]["content"])  # type: ignore[index]
        for answer, chat in zip(answers, chats, strict=True)
    )
    assert right <= 1
