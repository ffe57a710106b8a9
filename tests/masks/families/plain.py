"""Families whose roles are plain words: only the end of a reply is a token, or not even that."""

from __future__ import annotations

from masks.family import (
    Family,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    must_alternate,
    said,
    system_and_rest,
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
_LLAMA2_TOKENS = ("<unk>", "<s>", "</s>")


def _llama2(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    must_alternate(rest)
    out: Pieces = []
    for n, m in enumerate(rest):
        if m["role"] == "user":
            text = m["content"]
            out += ["<s>", "[INST] "]
            if n == 0 and system is not None:
                out += ["<<SYS>>\n", Said(system), "\n<</SYS>>\n\n", said(m, text.rstrip())]
            else:
                out += [said(m, text.strip())]
            out += [" [/INST]"]
        else:
            out += [" ", said(m, m["content"].strip()), " ", "</s>"]
    return out


def _llama2_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [" ", said(messages[n], messages[n]["content"].strip()), " ", "</s>"]


def _zephyr(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = []
    for m in messages:
        out += [f"<|{m['role']}|>\n", said(m), "</s>", "\n"]
    return out + (["<|assistant|>\n"] if prompt else [])


def _to_end_token(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n]), "</s>"]


def _vicuna(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<s>", _VICUNA_SYSTEM if system is None else Said(system), " "]
    for m in rest:
        if m["role"] == "user":
            out += ["USER: ", said(m), " "]
        else:
            out += ["ASSISTANT: ", said(m), "</s>"]
    return out + (["ASSISTANT:"] if prompt else [])


def _vicuna_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [" ", said(messages[n]), "</s>"]


def _alpaca(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<s>", _ALPACA_SYSTEM if system is None else Said(system), "\n\n"]
    for m in rest:
        if m["role"] == "user":
            out += ["### Instruction:\n", said(m), "\n\n"]
        else:
            out += ["### Response:\n", said(m), "</s>", "\n\n"]
    return out + (["### Response:\n"] if prompt else [])


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
            if given:
                out += ["### Instruction:\n", Said(m["instruction"]), "\n\n"]
                out += ["### Input:\n", Said(given), "\n\n"]
            else:
                out += ["### Instruction:\n", said(m), "\n\n"]
        else:
            out += ["### Response:", said(m), "</s>"]
    return out + (["### Response:"] if prompt else [])


def _starter(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    names = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response: "}
    out: Pieces = []
    for m in messages:
        out += [names[m["role"]], said(m)]
        out += ["<|end|>", "\n\n"] if m["role"] == "assistant" else ["\n\n"]
    return out + (["### Response:"] if prompt else [])


def _starter_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [" ", said(messages[n]), "<|end|>"]


def _olmo2(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = ["<|endoftext|>"]
    for n, m in enumerate(messages):
        out += [f"<|{m['role']}|>\n", said(m)]
        if m["role"] == "assistant":
            out += ["<|endoftext|>", *(["\n"] if n < len(messages) - 1 else [])]
        else:
            out += ["\n"]
    return out + (["<|assistant|>\n"] if prompt else [])


def _olmo2_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n]), "<|endoftext|>"]


def _roles(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = []
    for m in messages:
        out += [m["role"].upper(), ": ", said(m), "\n"]
    return out + (["ASSISTANT:"] if prompt else [])


def _roles_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    # Nothing tells the last white space of the words from the template's own.
    return [" ", said(messages[n], messages[n]["content"].rstrip())]


def _glm4(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = ["[gMASK]", "<sop>"]
    for m in messages:
        out += [f"<|{m['role']}|>", "\n", said(m)]
    return out + (["<|assistant|>"] if prompt else [])


def _glm4_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return ["\n", said(messages[n], messages[n]["content"].rstrip())]


def _is_last(messages: Messages, n: int, tools: Tools) -> bool:
    return n == len(messages) - 1


FAMILIES = (
    Family(
        "llama2",
        _llama2,
        _llama2_reply,
        _LLAMA2_TOKENS,
        bos="<s>",
        eos="</s>",
        words=("[INST]", "[/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n"),
    ),
    Family(
        "zephyr",
        _zephyr,
        _to_end_token,
        _LLAMA2_TOKENS,
        bos="<s>",
        eos="</s>",
        words=("<|user|>\n", "<|system|>\n", "<|assistant|>\n"),
    ),
    Family(
        "vicuna",
        _vicuna,
        _vicuna_reply,
        _LLAMA2_TOKENS,
        bos="<s>",
        eos="</s>",
        words=("USER: ", " ASSISTANT:", "ASSISTANT: "),
    ),
    Family(
        "alpaca",
        _alpaca,
        _to_end_token,
        _LLAMA2_TOKENS,
        bos="<s>",
        eos="</s>",
        words=("### Instruction:\n", "\n\n### Response:\n"),
    ),
    Family(
        "built_in_alpaca",
        _built_in_alpaca,
        _to_end_token,
        _LLAMA2_TOKENS,
        bos="<s>",
        eos="</s>",
        words=("### Instruction:\n", "### Input:\n", "\n\n### Response:"),
        built_in="alpaca",
        inputs=True,
    ),
    Family(
        "starter",
        _starter,
        _starter_reply,
        ("<|end|>",),
        eos="<|end|>",
        words=("### System:\n", "### Instruction:\n", "\n\n### Response:"),
    ),
    Family(
        "olmo2",
        _olmo2,
        _olmo2_reply,
        ("<|endoftext|>",),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        words=("<|user|>\n", "<|system|>\n", "<|assistant|>\n"),
    ),
    Family(
        "roles",
        _roles,
        _roles_reply,
        _LLAMA2_TOKENS,
        eos="</s>",
        words=("USER: ", "\nASSISTANT:"),
        kept=_is_last,
        open_ended=lambda messages, n: True,
    ),
    Family(
        "glm4",
        _glm4,
        _glm4_reply,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        # A turn ends where the next speaker's token stands.
        more_eos=("<|user|>",),
        kept=_is_last,
        open_ended=lambda messages, n: True,
    ),
)
