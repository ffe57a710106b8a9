"""Families whose roles are plain words: only the end of a reply is a token, or not even that."""

from __future__ import annotations

from functools import partial

from masks.family import (
    Family,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    is_last,
    layout,
    must_alternate,
    said,
    system_and_rest,
    up_to,
)

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_ALPACA_SYSTEM_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
_SPEAKERS = ("<|user|>\n", "<|system|>\n", "<|assistant|>\n")


def _llama2(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    must_alternate(rest)
    out: Pieces = []
    for n, m in enumerate(rest):
        if m["role"] == "assistant":
            out += [" ", said(m, m["content"].strip()), " </s>"]
        elif n == 0 and system is not None:
            out += ["<s>[INST] <<SYS>>\n", Said(system), "\n<</SYS>>\n\n"]
            out += [said(m, m["content"].rstrip()), " [/INST]"]
        else:
            out += ["<s>[INST] ", said(m, m["content"].strip()), " [/INST]"]
    return out


def _built_in_alpaca(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    if tools:
        raise Refused("no place for tools")
    out: Pieces = ["<s>"]
    for n, m in enumerate(messages):
        if m["role"] == "system":
            out += [Said(m["content"]), "\n\n"]
        elif m["role"] == "user":
            given = m.get("input")
            if n and messages[n - 1]["role"] == "assistant":
                out += ["\n\n"]
            elif n == 0:
                out += [_ALPACA_SYSTEM_WITH_INPUT if given else _ALPACA_SYSTEM, "\n\n"]
            out += ["### Instruction:\n", Said(m["instruction"]) if given else said(m), "\n\n"]
            out += ["### Input:\n", Said(given), "\n\n"] if given else []
        else:
            out += ["### Response:", said(m), "</s>"]
    return out + (["### Response:"] if prompt else [])


_olmo2_with_newlines = layout(
    "<|{}|>\n",
    {"system": "\n", "user": "\n", "assistant": "<|endoftext|>\n"},
    "<|assistant|>\n",
    start="<|endoftext|>",
)


def _olmo2(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out = _olmo2_with_newlines(messages, tools, prompt)
    if messages[-1]["role"] == "assistant":
        out[-2] = "<|endoftext|>"
    return out


_spm = partial(Family, special=("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>")

FAMILIES = (
    _spm(
        "llama2",
        _llama2,
        up_to(" </s>", start=" ", trim=str.strip),
        words=("[INST]", "[/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n"),
    ),
    _spm(
        "zephyr",
        layout("<|{}|>\n", "</s>\n", "<|assistant|>\n"),
        up_to("</s>"),
        words=_SPEAKERS,
    ),
    _spm(
        "vicuna",
        layout(
            {"user": "USER: ", "assistant": "ASSISTANT: "},
            {"system": " ", "user": " ", "assistant": "</s>"},
            "ASSISTANT:",
            start="<s>",
            opening=_VICUNA_SYSTEM,
        ),
        up_to("</s>", start=" "),
        words=("USER: ", " ASSISTANT:", "ASSISTANT: "),
    ),
    _spm(
        "alpaca",
        layout(
            {"user": "### Instruction:\n", "assistant": "### Response:\n"},
            {"system": "\n\n", "user": "\n\n", "assistant": "</s>\n\n"},
            "### Response:\n",
            start="<s>",
            opening=_ALPACA_SYSTEM,
        ),
        up_to("</s>"),
        words=("### Instruction:\n", "\n\n### Response:\n"),
    ),
    _spm(
        "built_in_alpaca",
        _built_in_alpaca,
        up_to("</s>"),
        words=("### Instruction:\n", "### Input:\n", "\n\n### Response:"),
        built_in="alpaca",
        inputs=True,
    ),
    Family(
        "starter",
        layout(
            {
                "system": "### System:\n",
                "user": "### Instruction:\n",
                "assistant": "### Response: ",
            },
            {"system": "\n\n", "user": "\n\n", "assistant": "<|end|>\n\n"},
            "### Response:",
        ),
        up_to("<|end|>", start=" "),
        ("<|end|>",),
        eos="<|end|>",
        words=("### System:\n", "### Instruction:\n", "\n\n### Response:"),
    ),
    Family(
        "olmo2",
        _olmo2,
        up_to("<|endoftext|>"),
        ("<|endoftext|>",),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        words=_SPEAKERS,
    ),
    # Nothing tells the last white space of these replies from the template's own.
    _spm(
        "roles",
        layout(
            {"system": "SYSTEM: ", "user": "USER: ", "assistant": "ASSISTANT: "}, "\n", "ASSISTANT:"
        ),
        up_to("", start=" ", trim=str.rstrip),
        bos=None,
        words=("USER: ", "\nASSISTANT:"),
        kept=is_last,
        open_ended=lambda messages, n: True,
    ),
    Family(
        "glm4",
        layout("<|{}|>\n", "", "<|assistant|>", start="[gMASK]<sop>"),
        up_to("", start="\n", trim=str.rstrip),
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        # A turn ends where the next speaker's token stands.
        more_eos=("<|user|>",),
        kept=is_last,
        open_ended=lambda messages, n: True,
    ),
)
