"""Families of reasoning models, told what was thought beside the words: under their own names,
in what their prompts open, with their switches on and off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from masks.families.reasoning import CALLS, DEEPSEEK, QWEN_MARKUP, QWEN_TOKENS, ROLES
from masks.family import Family, Message, Messages, Refused, calls_of, json_text, thought_of

_STRIPPED = "\n</think>\n\n"


def _reads(key: str) -> Callable[[Message], Message]:
    """A template that finds what was thought under another name."""

    def shape(message: Message) -> Message:
        names = {"reasoning_content": key}
        return {names.get(name, name): value for name, value in message.items()}

    return shape


def _after_tool(messages: Messages, n: int) -> bool:
    return bool(messages[n - 1]["role"] == "tool")


def _empty_block_gone(opened: str, turn: str) -> str:
    """A finished turn after a prompt that `opened` a thought, from where the thought ends."""
    if turn.startswith(opened) and "</think>" in turn:
        return turn.removeprefix(opened)
    before, close, after = turn.partition("</think>")
    if close and before.strip() in ("", "<think>"):
        return close + after
    return (_STRIPPED if opened.endswith("\n") else "</think>") + turn


# ---- DeepSeek: arguments are text, and finished turns show no thought ----------------------------

_EOS = "<｜end▁of▁sentence｜>"


def _as_text(message: Message) -> Message:
    """Calls with their arguments as text."""
    called = dict(message)
    called["tool_calls"] = [
        {**call, "function": {**call["function"], "arguments": json_text(arguments)}}
        for call, (_, arguments) in zip(
            message.get("tool_calls") or (), calls_of(message), strict=True
        )
    ]
    return called if called["tool_calls"] else message


def _r1_shape(message: Message) -> Message:
    alone = message.get("tool_calls") and not message["content"]
    return {**_as_text(message), "content": None} if alone else _as_text(message)


def _r1(messages: Messages, n: int) -> str:
    message, thought = messages[n], thought_of(messages[n]).strip()
    calls = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json_text(arguments)}\n```"
        "<｜tool▁call▁end｜>"
        for name, arguments in calls_of(message)
    )
    if _after_tool(messages, n):
        if thought or calls:
            raise Refused("what follows results has no header of its own")
        return f"{message['content']}{_EOS}"
    if calls:
        turn = f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>{_EOS}"
    else:
        turn = message["content"].split("</think>")[-1] + _EOS
    return thought + _STRIPPED + turn


def _v31(messages: Messages, n: int, thinks: bool) -> str:
    message, thought = messages[n], thought_of(messages[n]).strip() if thinks else ""
    calls = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json_text(arguments)}<｜tool▁call▁end｜>"
        for name, arguments in calls_of(message)
    )
    words = message["content"]
    if calls:
        words += f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"
    elif not _after_tool(messages, n) and "</think>" in words:
        words = words.split("</think>", 1)[1]
    if _after_tool(messages, n):
        if thought:
            raise Refused("what follows results opens no thought")
        return f"{words}{_EOS}"
    return f"{thought}</think>{words}{_EOS}" if thinks else f"{words}{_EOS}"


# ---- ChatML and its tools ------------------------------------------------------------------------


def _qwq(messages: Messages, n: int) -> str:
    words = messages[n]["content"].split("</think>")[-1].lstrip("\n")
    parts = [words] if words else []
    for name, arguments in calls_of(messages[n]):
        written = f'{{"name": "{name}", "arguments": {json_text(arguments)}}}'
        parts.append(f"<tool_call>\n{written}\n</tool_call>")
    return thought_of(messages[n]).strip() + _STRIPPED + "\n".join(parts) + "<|im_end|>"


def _in_tags(message: Message, write: Callable[[Any], str]) -> list[str]:
    return [
        f"<tool_call>\n<function={name}>\n"
        + "".join(
            f"<parameter={key}>\n{write(value)}\n</parameter>\n" for key, value in arguments.items()
        )
        + "</function>\n</tool_call>"
        for name, arguments in calls_of(message)
    ]


def _nemotron(messages: Messages, n: int, thinks: bool) -> str:
    message, thought = messages[n], thought_of(messages[n])
    words = message["content"]
    calls = "".join(
        f"\n{call}\n"
        for call in _in_tags(message, lambda v: v if isinstance(v, str) else json_text(v))
    )
    if thought and thinks:
        return f"<think>\n{thought}\n</think>\n{words}".strip()[8:] + calls + "<|im_end|>"
    if "<think>" not in words and "</think>" not in words:
        words = f"<think></think>{words}"
    turn = words.strip() + calls + "<|im_end|>"
    if thinks:
        return _empty_block_gone("<think>\n", turn)
    if not turn.startswith("<think></think>"):
        raise Refused("the template shows another thought than the prompt closed")
    return turn[15:]


def _qwen35(messages: Messages, n: int, thinks: bool) -> str:
    message, words = messages[n], messages[n]["content"].strip()

    def written(value: Any) -> str:
        return json_text(value) if isinstance(value, (dict, list)) else str(value)

    calls = "\n".join(_in_tags(message, written))
    turn = words + ("\n\n" if words and calls else "") + calls + "<|im_end|>"
    return thought_of(message) + _STRIPPED + turn if thinks else turn


# ---- the others ----------------------------------------------------------------------------------


def _harmony(messages: Messages, n: int) -> str:
    content, thought, calls = messages[n]["content"], thought_of(messages[n]), calls_of(messages[n])
    if len(calls) > 1:
        raise Refused("the template writes the first call only")
    aside = content if calls else ""
    if aside and thought:
        raise Refused("a call has content or thinking")
    before = aside or thought
    block = f"<|channel|>analysis<|message|>{before}<|end|><|start|>assistant" if before else ""
    for name, arguments in calls:
        channel = f" to=functions.{name}<|channel|>commentary json<|message|>"
        return f"{block}{channel}{json_text(arguments)}<|call|>"
    return f"{block}<|channel|>final<|message|>{content}<|return|>"


def _gemma_value(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + _gemma_pairs(value) + "}"
    return f"[{','.join(map(_gemma_value, value))}]" if isinstance(value, list) else str(value)


def _gemma_pairs(value: dict[str, Any]) -> str:
    items = sorted(value.items(), key=lambda item: item[0].lower())
    return ",".join(f"{key}:{_gemma_value(item)}" for key, item in items)


def _gemma4(messages: Messages, n: int, thinks: bool) -> str:
    message, thought = messages[n], thought_of(messages[n]) if thinks else ""
    calls = "".join(
        f"<|tool_call>call:{name}{{{_gemma_pairs(arguments)}}}<tool_call|>"
        for name, arguments in calls_of(message)
    )
    # Beside calls the template shows it as it is.
    shown = thought if calls else thought.strip()
    block = f"<|channel>thought\n{shown}\n<channel|>" if thought else ""
    return f"{block}{calls}{message['content'].strip()}<turn|>"


def _exaone(messages: Messages, n: int, thinks: bool) -> str:
    words = messages[n]["content"]
    if "</think>" in words:
        words = words.split("</think>")[-1].strip()
    parts = [words] if messages[n]["content"] else []
    for name, arguments in calls_of(messages[n]):
        written = f'{{"name": "{name}", "arguments": {json_text(arguments)}}}'
        parts.append(f"<tool_call>{written}</tool_call>")
    turn = "\n".join(parts) + "[|endofturn|]"
    return thought_of(messages[n]).strip() + _STRIPPED + turn if thinks else turn


def _glm45(messages: Messages, n: int, thinks: bool) -> str:
    message, words = messages[n], messages[n]["content"].strip()
    parts = [f"\n<think>{thought_of(message).strip()}</think>"] if thinks else []
    parts += [f"\n{words}"] if words else []
    for name, arguments in calls_of(message):
        given = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>"
            f"{value if isinstance(value, str) else json_text(value)}</arg_value>\n"
            for key, value in arguments.items()
        )
        parts.append(f"\n<tool_call>{name}\n{given}</tool_call>")
    return "".join(parts)


def _lfm25(messages: Messages, n: int) -> str:
    def written(value: Any) -> str:
        if isinstance(value, str):
            return f"'{value}'"
        return json_text(value) if isinstance(value, dict) else str(value)

    message, thought = messages[n], thought_of(messages[n])
    calls = ", ".join(
        f"{name}({', '.join(f'{key}={written(value)}' for key, value in arguments.items())})"
        for name, arguments in calls_of(message)
    )
    block = f"<think>{thought}</think>" if thought else ""
    called = f"<|tool_call_start|>[{calls}]<|tool_call_end|>" if calls else ""
    return f"{block}{message['content']}{called}<|im_end|>"


def _granite4(messages: Messages, n: int) -> str:
    parts = [messages[n]["content"]] if messages[n]["content"] else []
    for name, arguments in calls_of(messages[n]):
        written = f'{{"name": "{name}", "arguments": {json_text(arguments)}}}'
        parts.append(f"<tool_call>\n{written}\n</tool_call>")
    return "\n".join(parts) + "<|end_of_text|>"


def _ministral_shape(message: Message) -> Message:
    if not thought_of(message):
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    words = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return {**rest, "content": [{"type": "thinking", "thinking": thought_of(message)}, *words]}


def _ministral3(messages: Messages, n: int) -> str:
    thought = f"[THINK]{thought_of(messages[n])}[/THINK]" if thought_of(messages[n]) else ""
    calls = "".join(
        f"[TOOL_CALLS]{name}[ARGS]{json_text(arguments)}"
        for name, arguments in calls_of(messages[n])
    )
    return f"{thought}{messages[n]['content']}{calls}</s>"


_THINK = ("<think>", "</think>")
_GEMMA = (
    "<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>",
    "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", '<|"|>',
)  # fmt: skip
_GLM = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
)  # fmt: skip

_tooled = partial(Family, kept=None, reasons=True, tools=True, calls=2)
_deepseek = partial(_tooled, **DEEPSEEK, thinks_after_tools=False)
# Its results stand in no block of their own.
_v31_ = partial(
    _deepseek,
    markup=(*ROLES, *CALLS[:5], *CALLS[7:], *_THINK),
    loose=CALLS[5:7],
    shape=_as_text,
    template_name="deepseek_v31",
)
_chatml = partial(_tooled, special=QWEN_TOKENS, eos="<|im_end|>", markup=QWEN_MARKUP)
_gemma4_ = partial(
    _tooled, special=_GEMMA, bos="<bos>", eos="<eos>", more_eos=("<turn|>",), template_name="gemma4"
)
_exaone4_ = partial(
    _tooled,
    special=("[|endofturn|]", "[|system|]", "[|user|]", "[|assistant|]", "[|tool|]"),
    eos="[|endofturn|]",
    markup=(*_THINK, "<tool_call>", "</tool_call>", "<tool_result>", "</tool_result>"),
    template_name="exaone4",
)
_glm45_ = partial(
    _tooled,
    special=_GLM,
    eos="<|endoftext|>",
    more_eos=("<|user|>", "<|observation|>"),
    markup=(*_THINK, "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"),
    open_ended=lambda message: True,
    template_name="glm45",
)


def _switched(
    family: Callable[..., Family],
    name: str,
    reply: Callable[..., str],
    close: str = "</think>",
    **switch: bool,
) -> Family:
    """A family with its switch set, thinking or not."""
    ((option, thinks),) = switch.items()
    closes = close if thinks else ""
    set_ = {"options": ((option, thinks),), "closes": closes, "template_name": name}
    label = name if thinks else f"{name}_off"
    return family(label, partial(reply, thinks=thinks), **set_)


FAMILIES = (
    _deepseek(
        "deepseek_r1", _r1, shape=_r1_shape, closes="</think>", markup=(*ROLES, *CALLS, *_THINK)
    ),
    _v31_("deepseek_v31", partial(_v31, thinks=False)),
    _v31_(
        "deepseek_v31_think",
        partial(_v31, thinks=True),
        options=(("thinking", True),),
        closes="</think>",
    ),
    _chatml("qwq", _qwq, closes="</think>"),
    _switched(_chatml, "nemotron3", _nemotron, enable_thinking=True),
    _switched(_chatml, "nemotron3", _nemotron, enable_thinking=False),
    _switched(_chatml, "qwen35", _qwen35, enable_thinking=True),
    _switched(_chatml, "qwen35", _qwen35, enable_thinking=False),
    _tooled(
        "gpt_oss",
        _harmony,
        (
            "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
            "<|start|>", "<|end|>", "<|message|>", "<|call|>",
        ),
        bos="<|startoftext|>",
        eos="<|return|>",
        more_eos=("<|call|>", "<|endoftext|>"),
        calls=1,
        shape=_reads("thinking"),
    ),
    _switched(_gemma4_, "gemma4", _gemma4, "<channel|>", enable_thinking=True),
    _switched(_gemma4_, "gemma4", _gemma4, enable_thinking=False),
    _switched(_exaone4_, "exaone4", _exaone, enable_thinking=True),
    _switched(_exaone4_, "exaone4", _exaone, enable_thinking=False),
    _switched(_glm45_, "glm45", _glm45, enable_thinking=True),
    _switched(_glm45_, "glm45", _glm45, enable_thinking=False),
    _tooled(
        "lfm25",
        _lfm25,
        (
            "<|startoftext|>", "<|im_start|>", "<|im_end|>", "<|tool_call_start|>",
            "<|tool_call_end|>",
        ),
        bos="<|startoftext|>",
        eos="<|im_end|>",
        markup=_THINK,
        shape=_reads("thinking"),
    ),
    _tooled(
        "granite4",
        _granite4,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        eos="<|end_of_text|>",
        markup=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    _tooled(
        "ministral3",
        _ministral3,
        (
            "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
            "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]", "[THINK]", "[/THINK]",
        ),
        bos="<s>",
        eos="</s>",
        shape=_ministral_shape,
    ),
)  # fmt: skip
