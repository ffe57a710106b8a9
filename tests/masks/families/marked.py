"""Families whose turns stand between tokens of their own, with little else to them."""

from __future__ import annotations

from datetime import datetime

from masks.family import (
    Family,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    json_text,
    must_alternate,
    said,
    system_and_rest,
)


def _chatml(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = []
    for m in messages:
        out += ["<|im_start|>", m["role"], "\n", said(m), "<|im_end|>", "\n"]
    return out + (["<|im_start|>", "assistant\n"] if prompt else [])


def _chatml_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n]), "<|im_end|>"]


def _built_in_chatml(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    if tools or any(m.get("tool_calls") for m in messages):
        raise Refused("no place for tools")
    return _chatml(messages, tools, prompt)


def _llama3_0(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = ["<|begin_of_text|>"]
    for m in messages:
        out += ["<|start_header_id|>", m["role"], "<|end_header_id|>", "\n\n"]
        out += [said(m, m["content"].strip()), "<|eot_id|>"]
    if prompt:
        out += ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]
    return out


def _llama3_0_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n], messages[n]["content"].strip()), "<|eot_id|>"]


def _gemma_turns(messages: Messages, prefix: Pieces, prompt: bool) -> Pieces:
    must_alternate(messages)
    out: Pieces = []
    for n, m in enumerate(messages):
        role = "model" if m["role"] == "assistant" else m["role"]
        out += ["<start_of_turn>", role, "\n", *(prefix if n == 0 else [])]
        out += [said(m, m["content"].strip()), "<end_of_turn>", "\n"]
    return out + (["<start_of_turn>", "model\n"] if prompt else [])


def _gemma2(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    if messages[0]["role"] == "system":
        raise Refused("no system turns")
    return ["<bos>", *_gemma_turns(messages, [], prompt)]


def _gemma3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    prefix = [] if system is None else [Said(system), "\n\n"]
    return ["<bos>", *_gemma_turns(rest, prefix, prompt)]


def _gemma_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n], messages[n]["content"].strip()), "<end_of_turn>"]


def _phi3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = []
    for m in messages:
        out += [f"<|{m['role']}|>", "\n", said(m), "<|end|>", "\n"]
    return out + (["<|assistant|>", "\n"] if prompt else ["<|endoftext|>"])


def _phi3_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n]), "<|end|>"]


def _phi4(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    out: Pieces = []
    for m in messages:
        out += ["<|im_start|>", m["role"], "<|im_sep|>", said(m), "<|im_end|>"]
    return out + (["<|im_start|>", "assistant", "<|im_sep|>"] if prompt else [])


def _granite(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<|start_of_role|>", "system", "<|end_of_role|>"]
    if system is not None:
        out += [Said(system)]
    else:
        today = datetime.now().strftime("%B %d, %Y")
        out += [f"Knowledge Cutoff Date: April 2024. Today's Date: {today}. You are Granite."]
        if tools:
            out += [" Answer with ", "<|tool_call|>", " and a JSON list where a tool is needed."]
        else:
            out += [" You are a helpful AI assistant."]
    out += ["<|end_of_text|>", "\n"]
    if tools:
        out += ["<|start_of_role|>", "available_tools", "<|end_of_role|>"]
        out += [Said(json_text(tools, indent=4)), "<|end_of_text|>", "\n"]
    for m in rest:
        out += ["<|start_of_role|>", m["role"], "<|end_of_role|>", said(m), "<|end_of_text|>", "\n"]
    return out + (["<|start_of_role|>", "assistant", "<|end_of_role|>"] if prompt else [])


def _granite_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n]), "<|end_of_text|>"]


_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")

FAMILIES = (
    Family("chatml", _chatml, _chatml_reply, _CHATML_TOKENS, eos="<|im_end|>"),
    Family(
        "built_in_chatml",
        _built_in_chatml,
        _chatml_reply,
        _CHATML_TOKENS,
        eos="<|im_end|>",
        built_in="chatml",
    ),
    Family(
        "llama3_0",
        _llama3_0,
        _llama3_0_reply,
        _LLAMA3_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        more_eos=("<|eot_id|>",),
    ),
    Family(
        "gemma2",
        _gemma2,
        _gemma_reply,
        _GEMMA_TOKENS,
        bos="<bos>",
        eos="<eos>",
        more_eos=("<end_of_turn>",),
        system=False,
    ),
    Family("gemma3", _gemma3, _gemma_reply, _GEMMA_TOKENS, bos="<bos>", eos="<eos>"),
    Family(
        "phi3",
        _phi3,
        _phi3_reply,
        ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        eos="<|endoftext|>",
        # generation_config.json of the real one names all three.
        more_eos=("<|end|>", "<|assistant|>"),
        rstrip=True,
    ),
    Family(
        "phi4",
        _phi4,
        _chatml_reply,
        (*_CHATML_TOKENS, "<|im_sep|>"),
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
    Family(
        "granite",
        _granite,
        _granite_reply,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        eos="<|end_of_text|>",
        tools=True,
    ),
)
