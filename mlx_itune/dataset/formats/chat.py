"""Turns from lists of messages (OpenAI, ShareGPT, OpenHermes), and from texts that carry a
dialogue in marks (ChatML, Llama, Alpaca, Vicuna...).

What a mark parts is taken exactly: ChatML and Llama 3 to the character, the others without the line
break or space that belongs to the mark and without end tokens. Everything here is linear in the
length of the text, which may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mlx_itune.dataset.conversation import ROLES, RowFault, Turn
from mlx_itune.dataset.formats.fields import (
    Row,
    calls_in_text,
    calls_of,
    json_list,
    kind_name,
    value_of,
)
from mlx_itune.kit.wording import did_you_mean

_NAMES = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt bot chatgpt bing bard model function_call tool_call",
    "tool": "tool function observation tool_response function_response ipython",
}
ROLE_OF = {name: role for role, names in _NAMES.items() for name in names.split()}
_CALLING = frozenset({"function_call", "tool_call"})
# Names of what an assistant thought before its words: of a key, a content part, or a turn's role.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_THINKING = frozenset({*THOUGHTS, "thought"})

# Blocks of a role and its words: what opens one, stands between the two, and closes it.
_BLOCKS = (
    ("<|im_start|>", "\n", "<|im_end|>"),
    ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
)
_ALPACA = re.compile(r"^### (Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)
_SPEAKERS = (
    re.compile(r"### (Human|User|Assistant):[ \t]?"),
    re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):[ \t]?"),
    re.compile(r"^(Human|User|Assistant):[ \t]?", re.MULTILINE),
)
_ENDS = ("</s>", "<s>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<eos>")
_STARTS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
# Of a text read backwards, so that both are matched from where they stand, in linear time.
_TAIL = re.compile("(?:{}|\\s+)*".format("|".join(re.escape(end[::-1]) for end in _ENDS)))
_HEAD = re.compile("(?:\\s*(?:{}))*".format("|".join(map(re.escape, _STARTS))))
_PREAMBLE = "Below is an instruction that describes a task"


def turns_of(row: Row, key: str) -> tuple[Turn, ...]:
    """The turns of the list under `key`, with weights, names, tool calls and content parts."""
    # Both spellings occur under both names in the wild.
    names = [("role", "from"), ("content", "value")]
    if key.startswith("conversation"):
        names = [("from", "role"), ("value", "content")]
    turns: list[Turn] = []
    thoughts: list[str] = []
    for number, item in enumerate(json_list(value_of(row, key), repr(key)), 1):
        place = f"{key}[{number}]"
        if not isinstance(item, dict):
            raise RowFault("type", f"{place} is {kind_name(item)}, not an object")
        role, text = (
            item.get(other) if item.get(usual) is None else item[usual] for usual, other in names
        )
        if isinstance(role, str) and role.strip().lower() in _THINKING:
            thoughts.append(_content(text, place)[0])
            continue
        turn = _turn(item, place, role, text)
        if thoughts:
            if turn.role != "assistant":
                raise RowFault("reasoning", f"{place}: no assistant turn follows the reasoning")
            thoughts += [turn.reasoning] if turn.reasoning else []
            turn, thoughts = replace(turn, reasoning="\n\n".join(thoughts)), []
        if turn.role != "system" or turn.content.strip():
            turns.append(turn)
    if thoughts:
        raise RowFault("reasoning", f"{key}: no assistant turn follows the reasoning")
    return tuple(turns)


def thought_apart(turn: Turn) -> Turn:
    """An assistant's turn with what it thought, where its text begins so, as its reasoning.
    `<think>` is lacking where it was the end of the prompt."""
    thought, end, words = turn.content.partition("</think>")
    begins = thought.lstrip().startswith("<think>")
    alone = words[:1] == "\n" or thought[-1:] == "\n"
    if turn.role != "assistant" or not end or turn.reasoning is not None or not (begins or alone):
        return turn
    thought = thought.lstrip().removeprefix("<think>")
    if "<think>" in thought:
        return turn
    return replace(turn, content=words.lstrip("\r\n"), reasoning=thought.strip() or None)


def _turn(item: dict[str, Any], place: str, role: Any, text: Any) -> Turn:
    if not isinstance(role, str):
        raise RowFault("type", f"{place}: the role is {kind_name(role)}, not a string")
    name = role.strip().lower()
    if name not in ROLE_OF:
        hint = did_you_mean(name, ROLE_OF) or f"one of {', '.join(ROLES)}, or a usual name of these"
        raise RowFault("unknown-role", f"{place}: unknown role {role!r}", hint)
    role = ROLE_OF[name]
    if len(item) == 2 and isinstance(text, str) and name not in _CALLING:
        # Most turns are nothing but a role and a text.
        return Turn(role, text)
    if name in _CALLING:
        calls, text = calls_in_text(text, place), None
    else:
        calls = calls_of(item, place)
    content, thought = "", None
    if text is not None or not (calls or role == "tool"):
        content, thought = _content(text, place)
    for key in THOUGHTS:
        value = item.get(key)
        if not isinstance(value, (str, list, type(None))):
            raise RowFault("type", f"{place}: {key!r} is {kind_name(value)}, not a string")
        said = _content(value, place)[0].strip() if value else ""
        if said and thought not in (None, said):
            raise RowFault("reasoning", f"{place} has two different texts of reasoning")
        thought = said or thought
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float))):
        raise RowFault("type", f"{place}: 'weight' is {kind_name(weight)}, not a number")
    for key in ("name", "tool_call_id"):
        if not isinstance(item.get(key), (str, type(None))):
            raise RowFault("type", f"{place}: {key!r} is {kind_name(item[key])}, not a string")
    given = item.get("input")
    return Turn(
        role,
        content,
        weight,
        calls,
        item.get("name"),
        given if isinstance(given, str) and content.endswith(f"\n\n{given}") else None,
        item.get("tool_call_id"),
        thought,
    )


def _content(value: Any, place: str) -> tuple[str, str | None]:
    if isinstance(value, str):
        return value, None
    if not isinstance(value, list):
        raise RowFault("type", f"{place}: the text is {kind_name(value)}, not a string")
    parts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _THINKING:
            said = next((part[key] for key in (kind, *THOUGHTS, "text") if part.get(key)), "")
            thoughts.append(_content(said, place)[0])
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            reason = f"{place}: a content part is {kind or kind_name(part)!r}, not text"
            raise RowFault("content-type", reason, "only text can be learned")
        parts.append(text)
    return "".join(parts), "\n\n".join(thoughts).strip() or None


def marked_turns(text: str) -> tuple[Turn, ...] | None:
    """The turns of a text, or None where no marks, or none that make sense, part it. There has to
    be a question and a reply, and nothing that belongs to no turn."""
    for turns in _readings(text):
        if len(turns) > 1 and any(turn.role == "assistant" for turn in turns):
            return tuple(turns)
    return None


def _readings(text: str) -> Iterator[list[Turn]]:
    yield from (_in_blocks(text, *block) for block in _BLOCKS)
    yield _as_llama2(text)
    yield _as_alpaca(text)
    for speakers in _SPEAKERS:
        before, parts = _parted(text, speakers)
        turns = [Turn("system", before)] if before and parts else []
        yield turns + [Turn(ROLE_OF[name.lower()], said) for name, said in parts]


def _in_blocks(text: str, opens: str, named: str, closes: str) -> list[Turn]:
    before, *blocks = text.split(opens)
    if _trimmed(before).strip():
        return []
    turns = []
    for block in blocks:
        name, _, rest = block.partition(named)
        words, end, after = rest.partition(closes)
        role = ROLE_OF.get(name.strip().lower())
        if not end and block is blocks[-1] and role == "assistant" and not _trimmed(rest).strip():
            # A generation prompt left at the end is no turn.
            continue
        if role is None or not end or _trimmed(after).strip():
            return []
        turns.append(Turn(role, words))
    return turns


def _as_llama2(text: str) -> list[Turn]:
    before, *rounds = text.split("[INST]")
    if _trimmed(before).strip():
        return []
    turns: list[Turn] = []
    for round_ in rounds:
        asked, end, reply = round_.partition("[/INST]")
        if not end:
            return []
        if not turns and asked.lstrip().startswith("<<SYS>>") and "<</SYS>>" in asked:
            system, _, asked = asked.partition("<</SYS>>")
            turns.append(Turn("system", system.lstrip().removeprefix("<<SYS>>").strip()))
        turns += [Turn("user", asked.strip()), Turn("assistant", _trimmed(reply).strip())]
    return turns


def _as_alpaca(text: str) -> list[Turn]:
    before, parts = _parted(text, _ALPACA)
    turns = [Turn("system", before)] if before and not before.startswith(_PREAMBLE) else []
    previous = "Response"
    for name, said in parts:
        if (name, previous) == ("Instruction", "Response"):
            turns.append(Turn("user", said))
        elif (name, previous) == ("Input", "Instruction"):
            if said:
                turns[-1] = Turn("user", f"{turns[-1].content}\n\n{said}", input=said)
        elif name == "Response" != previous:
            turns.append(Turn("assistant", said))
        else:
            return []
        previous = name
    return turns


def _parted(text: str, marks: re.Pattern[str]) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the first mark, and each mark's name with what stands behind it."""
    before, *parts = marks.split(text)
    return _trimmed(before), [*zip(parts[::2], map(_trimmed, parts[1::2]), strict=True)]


def _trimmed(text: str) -> str:
    """Without white space and end tokens at the end, and start tokens and line breaks before."""
    tail = _TAIL.match(text[::-1])
    text = text[: len(text) - (tail.end() if tail else 0)]
    head = _HEAD.match(text)
    return text[head.end() if head else 0 :].lstrip("\r\n")
