"""Turns from lists of messages (OpenAI, ShareGPT, OpenHermes), and from texts that carry a
dialogue in marks (ChatML, Llama, Alpaca, Vicuna...).

What a mark parts is taken exactly: ChatML and Llama 3 to the character, the others without the line
break or space that belongs to the mark and without end tokens. Everything here is linear in the
length of the text, which may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mlx_itune.dataset.conversation import ROLES, RowFault, Turn
from mlx_itune.dataset.formats.fields import (
    Row,
    calls_in_text,
    calls_of,
    json_list,
    kind_name,
    plain_text,
    value_of,
)
from mlx_itune.dataset.formats.shapes import FLAGS, MASKS, in_rounds, masked
from mlx_itune.dataset.how import Account, Reading
from mlx_itune.kit.wording import did_you_mean

_NAMES = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt bot chatbot chatgpt bing bard model function_call tool_call",
    "tool": "tool function observation tool_response function_response ipython",
}
ROLE_OF = {name: role for role, names in _NAMES.items() for name in names.split()}
_CALLING = frozenset({"function_call", "tool_call"})
_PLAIN = {name: role for name, role in ROLE_OF.items() if name not in _CALLING}
# Names of what an assistant thought before its words: of a key, a content part, or a turn's role.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_THINKING = frozenset({*THOUGHTS, "thought"})
# Roles that only --roles can give a meaning, and the likeliest one.
_LIKELY = dict.fromkeys("environment env execution result api code_output ipython".split(), "tool")

_FLAG_TEXTS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_TURN_KEYS = frozenset(
    {"role", "from", "content", "value", "tool_calls", "function_call", "function_calls", "name"}
    | {"tool_call_id", "input", *FLAGS, *THOUGHTS}
)

# Blocks of a role and its words: what opens one, stands between the two, and closes it.
_BLOCKS = (
    ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ("<|im_start|>", "\n", "<|im_end|>"),
    ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<|header_start|>", "<|header_end|>\n\n", "<|eot|>"),
    ("<start_of_turn>", "\n", "<end_of_turn>"),
    ("<|turn>", "\n", "<turn|>"),
    ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ("<|START_OF_TURN_TOKEN|><|", "_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
)
_ALPACA = re.compile(r"^### (Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)
_SPEAKERS = (
    re.compile(r"<\|(user|assistant|system)\|>[ \t]*\n?"),
    re.compile("<\uff5c(User|Assistant)\uff5c>"),
    re.compile(r"### (Human|User|Assistant):[ \t]?"),
    re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):[ \t]?"),
    re.compile(r"^(Human|User|Assistant):[ \t]?", re.MULTILINE),
)
_ENDS = (
    "</s>", "<s>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<eos>", "<|end|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
_STARTS = (
    "<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "<BOS_TOKEN>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
# Of a text read backwards, so that both are matched from where they stand, in linear time.
_TAIL = re.compile("(?:{}|\\s+)*".format("|".join(re.escape(end[::-1]) for end in _ENDS)))
_HEAD = re.compile("(?:\\s*(?:{}))*".format("|".join(map(re.escape, _STARTS))))
_PREAMBLE = "Below is an instruction that describes a task"


def turns_of(row: Row, key: str, how: Reading) -> tuple[Turn, ...]:
    """The turns of the list under `key`, with weights, names, tool calls and content parts; of a
    list of rounds, question and answer of each."""
    # Both spellings occur under both names in the wild.
    names = ("role", "from", "content", "value")
    if key.startswith("conversation"):
        names = ("from", "role", "value", "content")
    whose, or_whose, what, or_what = names
    turns: list[Turn] = []
    thoughts: list[str] = []
    known = {} if how.roles else _PLAIN
    items = json_list(value_of(row, key), repr(key))
    if items and not (isinstance(items[0], dict) and {"role", "from"} & items[0].keys()):
        items = in_rounds(items, key, how.told)
    if not row.keys().isdisjoint(MASKS):
        items = masked(items, row, ROLE_OF)
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise RowFault("type", f"{key}[{number}] is {kind_name(item)}, not an object")
        if (role := item.get(whose)) is None:
            role = item.get(or_whose)
        if (text := item.get(what)) is None:
            text = item.get(or_what)
        # Most turns are nothing but a role and a text.
        if (
            len(item) == 2
            and isinstance(text, str)
            and isinstance(role, str)
            and role in known
            and not thoughts
        ):
            if role != "system" or text.strip():
                turns.append(Turn(known[role], text))
            continue
        place = f"{key}[{number}]"
        if isinstance(role, str) and role.strip().lower() in _THINKING:
            thoughts.append(_content(text, place, how.told)[0])
            continue
        turn = _turn(item, place, role, text, how)
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
    """An assistant's turn with what it thought, where its text begins so, as its reasoning. What
    opens a thought is lacking where it was the end of the prompt."""
    if turn.role != "assistant" or turn.reasoning is not None:
        return turn
    for opens, closes in (("<think>", "</think>"), ("[THINK]", "[/THINK]")):
        thought, end, words = turn.content.partition(closes)
        begins = thought.lstrip().startswith(opens)
        alone = words[:1] == "\n" or thought[-1:] == "\n"
        thought = thought.lstrip().removeprefix(opens)
        if end and (begins or alone) and opens not in thought:
            return replace(turn, content=words.lstrip("\r\n"), reasoning=thought.strip() or None)
    return turn


def _turn(item: dict[str, Any], place: str, role: Any, text: Any, how: Reading) -> Turn:
    if not isinstance(role, str):
        raise RowFault("type", f"{place}: the role is {kind_name(role)}, not a string")
    name = role.strip().lower()
    known = how.roles.get(name) or ROLE_OF.get(name)
    if known is None:
        meant = f"--roles {name}={_LIKELY.get(name, 'user')} (or another of {', '.join(ROLES)})"
        hint = did_you_mean(name, ROLE_OF) or meant
        raise RowFault("unknown-role", f"{place}: unknown role {role!r}", hint)
    role = known
    if name in _CALLING:
        calls, text = calls_in_text(text, place), None
    else:
        calls = calls_of(item, place)
    content, thought = "", None
    if text is not None or not (calls or role == "tool"):
        content, thought = _content(text, place, how.told)
    for key in THOUGHTS:
        value = item.get(key)
        if not isinstance(value, (str, list, type(None))):
            raise RowFault("type", f"{place}: {key!r} is {kind_name(value)}, not a string")
        said = _content(value, place, how.told)[0].strip() if value else ""
        if said and thought not in (None, said):
            raise RowFault("reasoning", f"{place} has two different texts of reasoning")
        thought = said or thought
    weight = _weight(item, place, role, how.told)
    for key in ("name", "tool_call_id"):
        if not isinstance(item.get(key), (str, type(None))):
            raise RowFault("type", f"{place}: {key!r} is {kind_name(item[key])}, not a string")
    given = item.get("input")
    if given and not (isinstance(given, str) and content.endswith(f"\n\n{given}")):
        how.told.lose("'input' of turns")
        given = None
    if not item.keys() <= _TURN_KEYS:
        _tell_unread(item, role, how.told)
    return Turn(
        role,
        content,
        weight,
        calls,
        item.get("name"),
        given or None,
        item.get("tool_call_id"),
        thought,
    )


def _weight(item: dict[str, Any], place: str, role: str, told: Account) -> float | None:
    """How much a turn is learned by its flags, which may be texts; None where there are none."""
    found: dict[str, float] = {}
    for key in FLAGS:
        value = item.get(key)
        if value is None:
            continue
        weight = _FLAG_TEXTS.get(value.strip().lower()) if isinstance(value, str) else None
        with suppress(TypeError, ValueError, OverflowError):
            weight = float(value) if weight is None else weight
        if weight is None and key == "weight":
            raise RowFault("type", f"{place}: 'weight' is {kind_name(value)}, not a number")
        if weight is None or (key != "weight" and weight not in (0, 1)):
            told.lose(f"{key!r} of turns: neither true nor false")
        elif role != "assistant":
            found[key] = weight
            if weight:
                told.lose(f"{key!r} of {role} turns: only replies are learned")
        else:
            found[key] = weight
            if not weight:
                told.take(f"replies that {key!r} keeps from being learned")
    if len({bool(weight) for weight in found.values()}) > 1:
        said = " and ".join(f"{key!r}: {item[key]!r}" for key in found)
        raise RowFault("weight", f"{place}: {said} contradict one another")
    return next(iter(found.values()), None)


def _tell_unread(item: dict[str, Any], role: str, told: Account) -> None:
    """Tell of what a turn has under names that mean nothing here."""
    for key in item.keys() - _TURN_KEYS:
        if item[key] not in (None, "", [], {}):
            told.lose(f"{key!r} of {role} turns")


def _content(value: Any, place: str, told: Account) -> tuple[str, str | None]:
    """The text of a content, and of those of its parts that are reasoning."""
    if isinstance(value, str):
        return value, None
    is_typed = isinstance(value, dict) and "type" in value and {"text", *_THINKING} & value.keys()
    if is_typed or (isinstance(value, dict) and value.keys() == {"text"}):
        value = [value]
    if value is None:
        raise RowFault("type", f"{place}: the text is null, not a string")
    if not isinstance(value, list) or (value and not any(map(_is_part, value))):
        return plain_text(value, "the text of a turn", told), None
    parts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _THINKING:
            said = next((part[key] for key in (kind, *THOUGHTS, "text") if part.get(key)), "")
            thoughts.append(_content(said, place, told)[0])
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            reason = f"{place}: a content part is {kind or kind_name(part)!r}, not text"
            raise RowFault("content-type", reason, "only text can be learned")
        if isinstance(part, dict):
            for key in part.keys() - {"type", "text"}:
                if part[key] not in (None, "", [], {}):
                    told.lose(f"{key!r} of a content part")
        parts.append(text)
    return "".join(parts), "\n\n".join(thoughts).strip() or None


def _is_part(value: Any) -> bool:
    return not isinstance(value, dict) or bool({"type", "text"} & value.keys())


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
