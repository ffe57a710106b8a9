"""Families whose replies are their words and an end: a token, or not even that."""

from __future__ import annotations

from functools import partial

from masks.family import Family, is_last, up_to

_SPEAKERS = ("<|user|>\n", "<|system|>\n", "<|assistant|>\n")
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip

_spm = partial(Family, reply=up_to("</s>"), special=("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>")
_chatml = partial(Family, reply=up_to("<|im_end|>"), special=_CHATML_TOKENS, eos="<|im_end|>")
_gemma = partial(
    Family,
    reply=up_to("<end_of_turn>", trim=str.strip),
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
)
# Nothing tells the last white space of these replies from the template's own.
_endless = partial(Family, kept=is_last, open_ended=lambda message: True)

FAMILIES = (
    _chatml("chatml"),
    _chatml("built_in_chatml", built_in="chatml"),
    _chatml("phi4", special=(*_CHATML_TOKENS, "<|im_sep|>"), bos="<|endoftext|>"),
    Family(
        "llama3_0",
        up_to("<|eot_id|>", trim=str.strip),
        LLAMA3_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        more_eos=("<|eot_id|>",),
    ),
    _gemma("gemma2", more_eos=("<end_of_turn>",), system=False),
    _gemma("gemma3"),
    Family(
        "phi3",
        up_to("<|end|>"),
        ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        eos="<|endoftext|>",
        # generation_config.json of the real one names all three.
        more_eos=("<|end|>", "<|assistant|>"),
        rstrip=True,
    ),
    Family(
        "granite",
        up_to("<|end_of_text|>"),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        eos="<|end_of_text|>",
        tools=True,
    ),
    _spm(
        "llama2",
        reply=up_to(" </s>", start=" ", trim=str.strip),
        words=("[INST]", "[/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n"),
    ),
    _spm("mistral_v1", words=("[INST] ", " [/INST]"), system=False),
    _spm("zephyr", words=_SPEAKERS),
    _spm(
        "vicuna",
        reply=up_to("</s>", start=" "),
        words=("USER: ", " ASSISTANT:", "ASSISTANT: "),
    ),
    _spm("alpaca", words=("### Instruction:\n", "\n\n### Response:\n")),
    _spm(
        "built_in_alpaca",
        words=("### Instruction:\n", "### Input:\n", "\n\n### Response:"),
        built_in="alpaca",
        inputs=True,
    ),
    Family(
        "starter",
        up_to("<|end|>", start=" "),
        ("<|end|>",),
        eos="<|end|>",
        words=("### System:\n", "### Instruction:\n", "\n\n### Response:"),
    ),
    Family(
        "olmo2",
        up_to("<|endoftext|>"),
        ("<|endoftext|>",),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        words=_SPEAKERS,
    ),
    _endless(
        "roles",
        up_to("", start=" ", trim=str.rstrip),
        ("<unk>", "<s>", "</s>"),
        eos="</s>",
        words=("USER: ", "\nASSISTANT:"),
    ),
    _endless(
        "glm4",
        up_to("", start="\n", trim=str.rstrip),
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        # A turn ends where the next speaker's token stands.
        more_eos=("<|user|>",),
    ),
)
