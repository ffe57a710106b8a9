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
    layout,
    must_alternate,
    said,
    system_and_rest,
    up_to,
)

_chatml = layout("<|im_start|>{}\n", "<|im_end|>\n", "<|im_start|>assistant\n")


def _built_in_chatml(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    if tools or any(m.get("tool_calls") for m in messages):
        raise Refused("no place for tools")
    return _chatml(messages, tools, prompt)


def _gemma_turns(messages: Messages, prefix: Pieces, prompt: bool) -> Pieces:
    must_alternate(messages)
    out: Pieces = ["<bos>"]
    for n, m in enumerate(messages):
        role = "model" if m["role"] == "assistant" else m["role"]
        out += [f"<start_of_turn>{role}\n", *(prefix if n == 0 else [])]
        out += [said(m, m["content"].strip()), "<end_of_turn>\n"]
    return out + (["<start_of_turn>model\n"] if prompt else [])


def _gemma2(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    return _gemma_turns(messages, [], prompt)


def _gemma3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    return _gemma_turns(rest, [] if system is None else [Said(system), "\n\n"], prompt)


def _granite(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<|start_of_role|>system<|end_of_role|>"]
    if system is not None:
        out += [Said(system)]
    else:
        today = datetime.now().strftime("%B %d, %Y")
        out += [f"Knowledge Cutoff Date: April 2024. Today's Date: {today}. You are Granite."]
        with_tools = " Answer with <|tool_call|> and a JSON list where a tool is needed."
        out += [with_tools if tools else " You are a helpful AI assistant."]
    out += ["<|end_of_text|>\n"]
    if tools:
        out += ["<|start_of_role|>available_tools<|end_of_role|>"]
        out += [Said(json_text(tools, indent=4)), "<|end_of_text|>\n"]
    for m in rest:
        out += [f"<|start_of_role|>{m['role']}<|end_of_role|>", said(m), "<|end_of_text|>\n"]
    return out + (["<|start_of_role|>assistant<|end_of_role|>"] if prompt else [])


_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_to_im_end = up_to("<|im_end|>")
_to_end_of_turn = up_to("<end_of_turn>", trim=str.strip)

FAMILIES = (
    Family("chatml", _chatml, _to_im_end, _CHATML_TOKENS, eos="<|im_end|>"),
    Family(
        "built_in_chatml",
        _built_in_chatml,
        _to_im_end,
        _CHATML_TOKENS,
        eos="<|im_end|>",
        built_in="chatml",
    ),
    Family(
        "llama3_0",
        layout(
            "<|start_header_id|>{}<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            start="<|begin_of_text|>",
            trim=str.strip,
        ),
        up_to("<|eot_id|>", trim=str.strip),
        LLAMA3_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        more_eos=("<|eot_id|>",),
    ),
    Family(
        "gemma2",
        _gemma2,
        _to_end_of_turn,
        _GEMMA_TOKENS,
        bos="<bos>",
        eos="<eos>",
        more_eos=("<end_of_turn>",),
        system=False,
    ),
    Family("gemma3", _gemma3, _to_end_of_turn, _GEMMA_TOKENS, bos="<bos>", eos="<eos>"),
    Family(
        "phi3",
        layout("<|{}|>\n", "<|end|>\n", "<|assistant|>\n", closing="<|endoftext|>"),
        up_to("<|end|>"),
        ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        eos="<|endoftext|>",
        # generation_config.json of the real one names all three.
        more_eos=("<|end|>", "<|assistant|>"),
        rstrip=True,
    ),
    Family(
        "phi4",
        layout("<|im_start|>{}<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
        _to_im_end,
        (*_CHATML_TOKENS, "<|im_sep|>"),
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
    Family(
        "granite",
        _granite,
        up_to("<|end_of_text|>"),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        eos="<|end_of_text|>",
        tools=True,
    ),
)
