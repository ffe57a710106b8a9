"""Families with tools, guides and channels: what a call is, and what becomes of earlier turns."""

from __future__ import annotations

from collections.abc import Callable

from masks.families.plain import LLAMA3_TOKENS
from masks.family import (
    Family,
    Message,
    Messages,
    Tools,
    calls_of,
    json_text,
    last_question,
    up_to,
)

# ---- Mistral: the generation prompt is the end of the instruction, and tools move about ---------


def _mistral(name: str, space: str, trim: Callable[[str], str]) -> Family:
    """v3 and Nemo differ in one space around their tokens and in trimming replies."""

    def reply(messages: Messages, n: int) -> str:
        calls = [
            f'{json_text(call["function"])[:-1]}, "id": "{call["id"]}"}}'
            for call in messages[n].get("tool_calls") or ()
        ]
        if calls:
            return f"[TOOL_CALLS]{space}[{', '.join(calls)}]</s>"
        return f"{space}{trim(messages[n]['content'])}</s>"

    return Family(
        name,
        reply,
        (
            "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
        ),
        bos="<s>",
        eos="</s>",
        kept=_mistral_kept,
        tools=True,
        calls=3,
        call_ids=True,
    )  # fmt: skip


def _mistral_kept(messages: Messages, n: int, tools: Tools) -> bool:
    if messages[0]["role"] == "system" and messages[n - 1]["role"] == "user":
        # The prompt holds the system text, the finished conversation does not.
        return False
    # The template compares turns by value: a repeated question gets the tools each time.
    asked = messages[last_question(messages[:n])]
    return not tools or bool(asked == messages[last_question(messages)])


# ---- Llama 3.1 and 3.2, Qwen 2.5 -----------------------------------------------------------------


def _llama3(messages: Messages, n: int) -> str:
    for name, arguments in calls_of(messages[n]):
        return f'{{"name": "{name}", "parameters": {json_text(arguments)}}}<|eot_id|>'
    return f"{messages[n]['content'].strip()}<|eot_id|>"


def qwen(message: Message, content: str) -> str:
    """The content and the calls of a turn."""
    parts = [content] if content else []
    for name, arguments in calls_of(message):
        words = f'{{"name": "{name}", "arguments": {json_text(arguments)}}}'
        parts.append(f"<tool_call>\n{words}\n</tool_call>")
    return "\n".join(parts) + "<|im_end|>"


# ---- Command-R -----------------------------------------------------------------------------------

_END = "<|END_OF_TURN_TOKEN|>"
_COMMAND_R_TOKENS = (
    "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>", _END,
)  # fmt: skip


def _command_r(messages: Messages, n: int) -> str:
    text = messages[n]["content"].strip()
    if not messages[n].get("tool_calls"):
        return f"{text}{_END}"
    listed = []
    for name, arguments in calls_of(messages[n]):
        given = _indented(json_text(arguments, indent=4)) if arguments else "{}"
        listed.append(
            f'    {{\n        "tool_name": "{name}",\n        "parameters": {given}\n    }}'
        )
    # The template forgets to end these turns; the end token takes the last new line's place.
    return f"{text}\nAction:\n```json\n[\n" + ",\n".join(listed) + "\n]```"


def _indented(text: str) -> str:
    # Jinja cuts at every kind of line end, inside the strings of the JSON too.
    first, *rest = text.splitlines()
    return "\n".join((first, *(" " * 8 + line if line else line for line in rest)))


FAMILIES = (
    _mistral("mistral_v3", " ", str.strip),
    _mistral("mistral_nemo", "", str),
    Family(
        "llama3",
        _llama3,
        LLAMA3_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        more_eos=("<|end_of_text|>", "<|eom_id|>"),
        tools=True,
        calls=1,
    ),
    Family(
        "qwen25",
        lambda messages, n: qwen(messages[n], messages[n]["content"]),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        more_eos=("<|endoftext|>",),
        markup=("<tool_call>", "</tool_call>"),
        tools=True,
        calls=3,
    ),
    Family(
        "command_r",
        _command_r,
        _COMMAND_R_TOKENS,
        bos="<BOS_TOKEN>",
        eos=_END,
        # With tools, every prompt ends in a guide that finished turns do not show.
        kept=lambda messages, n, tools: not tools,
        open_ended=lambda message: bool(message.get("tool_calls")),
        tool_use_template="command_r_tools",
        tools=True,
        calls=3,
    ),
    Family(
        "command_r7b",
        # A response's own end is not yet the end of the turn.
        up_to(f"<|END_RESPONSE|>{_END}", trim=str.strip),
        (*_COMMAND_R_TOKENS, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        bos="<BOS_TOKEN>",
        eos=_END,
    ),
)  # fmt: skip
