"""Tiny tokenizers of every kind that matters, trained in-process."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from tests.gguf_vocabularies import BYTE_LEVEL, split, trained_bytes, trained_pieces

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


def gpt2() -> Tokenizer:
    """Byte-level BPE with GPT-2's pattern; offsets trimmed, as many shipped files have it."""
    tokenizer = trained_bytes(BYTE_LEVEL["gpt-2"], TEXT * 3, 420)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level BPE with Llama 3's pattern, which keeps runs of newlines together."""
    return trained_bytes(BYTE_LEVEL["dbrx"], TEXT * 3, 420)


def merging() -> Tokenizer:
    """Byte-level BPE without any pattern: its tokens cross every border they can."""
    return trained_bytes(split(r"[\s\S]{1,200}"), TEXT * 3, 420)


def llama2(scheme: str = "first") -> Tokenizer:
    """SentencePiece BPE with byte fallback, a space put before the text only."""
    tokenizer = trained_pieces(scheme, TEXT * 3, vocab_size=500, max_token_length=8)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def llama2_legacy() -> Tokenizer:
    """The older conversion: a normalizer puts a space after every special token too."""
    return llama2("prepend")


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
