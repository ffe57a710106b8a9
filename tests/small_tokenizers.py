"""Tiny tokenizers of every kind that matters, trained in-process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "### Instruction:\nName the medications.\n\n### Response: zolpidem, metformin 500 mg",
    "user assistant system model\n\n\nthe patient takes it twice daily :) Hello there.",
    "<think>\n\n</think>\n\n[INST] What is it? [/INST] It is good. ",
]
SPECIALS = [
    "<unk>", "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>",
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip


def _byte_level(pattern: str = "") -> Tokenizer:
    """`pattern` stands for GPT-2's own, which cuts a text into what may become a token."""
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    """Byte-level BPE with GPT-2's pattern; offsets trimmed, as many shipped files have it."""
    tokenizer = _byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level BPE with Llama 3's pattern, which keeps runs of newlines together."""
    return _byte_level(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def merging() -> Tokenizer:
    """Byte-level BPE without any pattern: its tokens cross every border they can."""
    return _byte_level(r"[\s\S]{1,200}")


def _sentencepiece(**steps: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    for name, step in steps.items():
        setattr(tokenizer, name, step)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        max_token_length=8,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    state["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def llama2() -> Tokenizer:
    """SentencePiece BPE with byte fallback, a space put before the text only."""
    return _sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace("▁", "first", split=False))


def llama2_legacy() -> Tokenizer:
    """The older conversion: a normalizer puts a space after every special token too."""
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return _sentencepiece(normalizer=normalizers.Sequence(steps))


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made for made in (gpt2, llama3, merging, llama2, llama2_legacy)
}


def fast(kind: str, eos: str = "</s>") -> PreTrainedTokenizerFast:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )
