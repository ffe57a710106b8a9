"""Turns from lists of messages (OpenAI, ShareGPT, OpenHermes), and from texts that carry a
dialogue in marks (ChatML, Llama, Alpaca, Vicuna...).

What a mark parts is taken exactly: ChatML and Llama 3 to the character, the others without the line
break or space that belongs to the mark and without end tokens. Everything here is linear in the
length of the text, which may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mlx_itune.dataset.conversation import ROLES, Turn
from mlx_itune.dataset.faults import RowFault
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
    turns = []
    for number, item in enumerate(json_list(value_of(row, key), repr(key)), 1):
        place = f"{key}[{number}]"
        if not isinstance(item, dict):
            raise RowFault("type", f"{place} is {kind_name(item)}, not an object")
        role, text = (
            item.get(other) if item.get(usual) is None else item[usual] for usual, other in names
        )
        turn = _turn(item, place, role, text)
        if turn.role != "system" or turn.content.strip():
            turns.append(turn)
    return tuple(turns)


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
    content = "" if text is None and (calls or role == "tool") else _content(text, place)
    thought = item.get("reasoning_content")
    if isinstance(thought, str) and thought.strip() and role == "assistant":
        # As the templates of reasoning models write it out.
        content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
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
    )


def _content(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowFault("type", f"{place}: the text is {kind_name(value)}, not a string")
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else kind_name(part)
            reason = f"{place}: a content part is {kind!r}, not text"
            raise RowFault("content-type", reason, "only text can be learned")
        parts.append(text)
    return "".join(parts)


def marked_turns(text: str) -> tuple[Turn, ...] | None:
    """The turns of a text, or None where no marks, or none that make sense, part it.

    There has to be a question and a reply, and nothing that belongs to no turn.
    """
    for turns in _readings(text):
        if len(turns) > 1 and any(turn.role == "assistant" for turn in turns):
            return tuple(turns)
    return None


def _readings(text: str) -> Iterator[list[Turn]]:
    """The turns under each kind of marks, none where a kind does not fit."""
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
