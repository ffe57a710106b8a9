"""One raw row of any accepted format -> its conversation, or the fault that it has.

| format | keys |
|---|---|
| openai | `messages` [{role, content, tool_calls?, function_call?, weight?, name?}], `tools`? |
| sharegpt | `conversations` [{from, value}] (or role, content), `system`?, `tools`? |
| openhermes | the same with `weight` in turns (null: as the run decides) and `system_prompt`? |
| seed-tasks | `instruction`, `instances` [{input, output}]: a conversation for each |
| alpaca | `instruction`, `input` (or `context`), `output` (or `response`...), `system`? |
| instruction-output | the same without `input` |
| prompt-completion | `prompt`, `completion`: texts or lists of messages |
| question-answer | `question`, `answer` |
| inputs-targets | `inputs`, `targets`, as FLAN writes them |
| input-output | `input`, `output` |
| text | `text` in which marks part the turns; forced, any text: it is learned whole |

The format is found per row: null and empty keys do not count. What a format does not use becomes a
tag of the conversation, as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from mlx_itune.dataset.conversation import TEXT_KIND, Conversation, RowFault, Turn, find_problem
from mlx_itune.dataset.formats.chat import THOUGHTS, marked_turns, thought_apart, turns_of
from mlx_itune.dataset.formats.fields import (
    Parsed,
    Row,
    as_text,
    kind_name,
    map_example,
    tags_of,
    text_of,
    tools_of,
    value_of,
    with_system,
)
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.wording import did_you_mean, known, listing

# Other names of an answer, each safe where it is the only one in the row.
_ANSWERS = ("output", "response", "completion", "answer", "target", "targets")
# Keys that tell a format, the most telling first; half of a pair does so with one of its halves.
_SIGNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("messages", "openai", ()),
    ("conversations", "sharegpt", ()),
    ("conversation", "sharegpt", ()),
    ("instances", "seed-tasks", ("instruction",)),
    ("instruction", "alpaca", _ANSWERS),
    ("prompt", "prompt-completion", _ANSWERS),
    ("question", "question-answer", _ANSWERS),
    ("inputs", "inputs-targets", ("targets",)),
    ("input", "input-output", ("output",)),
    ("text", "text", ()),
)
# Marks of templates, which as plain text would be learned as letters.
_MARK = re.compile(r"<[|\uff5c]?\w+[|\uff5c]?>|\[/?[A-Z_]+\]")
# Fields that hold lists; all others hold text.
_LISTS = frozenset({"messages", "conversations", "instances", "tools", "functions"})
_TEXTS = frozenset(
    "instruction input output question answer prompt completion inputs targets text system "
    "response context reasoning".split()
)
# What a column called `reasoning` says of a model's mode; it is no thought.
_MODES = frozenset("on off true false yes no none low medium high minimal auto think".split())
# A tag is any other name, so only a near miss is taken for a typo.
_NEAR = 0.85
# Spellings of "there is no input" that Alpaca's generator and its descendants wrote, without
# regard to case and space around. Add what your data has.
NO_INPUT = [
    "", "<noinput>", "<no input>", "<no_input>", "noinput", "no input", "no_input", "no input.",
    "(no input)", "[no input]", "no input required", "no input needed", "no input provided", "n/a",
    "na", "none", "none.", "null", "nil", "-",
]  # fmt: skip
_NO_INPUT = frozenset(NO_INPUT)


def parse_rows(
    value: dict[str, Any],
    origin: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[Conversation, ...]:
    """The conversations in a row: one, or one for each instance of a seed task. `format`: None
    finds it out. `columns`: which column is which field; the others become tags. Raises RowFault;
    UsageError for an unknown format."""
    check_format(format)
    row, rest = value, dict[str, Any]()
    name = format
    if columns is not None:
        row, rest = _mapped(value, columns)
        whole = _sign(dict.fromkeys(columns, "x"), whole=True)
        name = format or whole
        if whole is None:
            # The mapping names a part of a row or tags only: the rest has names of its own.
            row, rest = {**rest, **row}, {}
    name = name or _sign(row)
    if name is None:
        raise _unknown(row)
    is_plain = format == "text"
    if is_plain:
        found: list[Parsed] = [((Turn("assistant", text_of(row, "text")),), {"text"})]
    else:
        found = [_with_thoughts(row, *parsed) for parsed in _PARSERS[name](row)]
    tools = tools_of(row)
    made = []
    for turns, used in found:
        problem = find_problem(turns, is_text=is_plain or row.get("kind") == TEXT_KIND)
        if problem:
            raise RowFault(*problem, _hint(problem[0], turns))
        if not any(turn.role == "assistant" for turn in turns):
            raise RowFault("no-reply", "no assistant turn, so there is nothing to learn")
        tags = {**tags_of(rest), **tags_of(row, used | {"tools", "functions"})}
        if is_plain:
            tags["kind"] = TEXT_KIND
        made.append(Conversation(turns, origin, tools, tags, checked=True))
    return tuple(made)


def check_format(name: str | None) -> None:
    """Raise UsageError for a format that is none of FORMATS."""
    if name is not None:
        known("format", name, FORMATS)


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UsageError for a mapping that cannot be meant: empty, or with a misspelt field."""
    if not columns:
        example = "--map instruction=question --map output=answer"
        raise UsageError("--map names no column", hint=example)
    fields = sorted(_TEXTS | _LISTS)
    for field, column in columns.items():
        if not field or not column:
            raise UsageError(f"--map {field}={column} lacks a name", hint="write field=column")
        near = get_close_matches(field, fields, 1, _NEAR)
        if near and field not in fields:
            message = f"--map {field}={column}: no field {field!r}"
            raise UsageError(message, hint=f"did you mean {near[0]}?")


def names_positions(columns: Mapping[str, str]) -> bool:
    """Whether every column is a number, which is how a table without a header is addressed."""
    return all(column.isdigit() for column in columns.values())


def _sign(row: Row, *, whole: bool = False) -> str | None:
    """The format that the row's keys tell; keys without a value do so only if no others do. Half of
    a pair is a sign only as long as nothing else is whole; `whole`: not even then."""
    for key, name, halves in _SIGNS:
        is_said = row.get(key) is not None and row[key] != ""
        if is_said and (not halves or any(row.get(half) for half in halves)):
            return name
    return None if whole else next((name for key, name, _ in _SIGNS if key in row), None)


def _mapped(row: Row, columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `columns` names with their values, and the rest of the row. Numbers become
    text. Raises RowFault where a column is missing."""
    fields: dict[str, Any] = {}
    for field, column in columns.items():
        value = _lookup(row, column)
        is_nested = isinstance(value, (list, dict))
        if is_nested and field in _TEXTS and field != "prompt":
            raise RowFault("type", f"the column {column!r} is {kind_name(value)}, not a text")
        is_plain = value is None or is_nested or field in _LISTS
        fields[field] = value if is_plain else as_text(value)
    taken = set(columns.values())
    return fields, {key: item for key, item in row.items() if key not in taken}


def _lookup(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    walked = ""
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            names = [walked + name for name in value] if isinstance(value, Mapping) else []
            meant = did_you_mean(column, names) or f"it has {listing(map(repr, names), most=8)}"
            raise RowFault("missing-column", f"no column {column!r}", meant if names else "")
        walked += f"{part}."
    return value


def _unknown(row: Row) -> RowFault:
    keys = listing(map(repr, row), most=6) or "none"
    if row and all(key.isdigit() for key in row):
        hint = "the table has no header: --map question=1 --map answer=2 says what its columns are"
        return RowFault("unknown-format", f"columns without names ({keys})", hint)
    known = {key for key, *_ in _SIGNS}
    meant = {key: closest(key, known) for key in row if key.lower() not in known}
    near = next((f"is {key!r} meant to be {name!r}?" for key, name in meant.items() if name), "")
    hint = near or map_example(row)
    return RowFault("unknown-format", f"no key of a known format (found {keys})", hint)


def _hint(code: str, turns: tuple[Turn, ...]) -> str:
    if code != "role-order":
        return ""
    if turns[0].role in ("assistant", "tool"):
        return "`mlx-itune data clean` can drop what comes before the first user turn"
    if any(turn.role == "system" for turn in turns[1:]):
        return "a system turn comes first, and once"
    same = any(one.role == other.role for one, other in pairwise(turns))
    return "join turns of the same role" if same else ""


def _with_thoughts(row: Row, turns: tuple[Turn, ...], used: set[str]) -> Parsed:
    """Turns with the row's system prompt, and their thoughts apart from their words: those that a
    reply begins with, and the column of one that is the only reply."""
    if any("</think>" in turn.content for turn in turns):
        turns = tuple(map(thought_apart, turns))
    replies = [turn for turn in turns if turn.role == "assistant"]
    for key in THOUGHTS if len(replies) == 1 and replies[0].reasoning is None else ():
        value = row.get(key)
        if isinstance(value, str) and value.strip() and value.strip().lower() not in _MODES:
            thinking = replace(replies[0], reasoning=value.strip())
            turns = tuple(thinking if turn is replies[0] else turn for turn in turns)
            used = {*used, key}
            break
    return with_system(row, turns, used)


def _messages(row: Row, *keys: str) -> list[Parsed]:
    key = next((key for key in keys if key in row), keys[0])
    return [(turns_of(row, key), {key})]


def _instructed(row: Row, instruction: str) -> Parsed:
    """An instruction, whose input (or Dolly's `context`) is a part of its own, and the answer."""
    key, answer = _only(row, ("input", "context")), _answer_key(row, "output")
    context = row.get(key)
    if context is not None and not isinstance(context, str):
        raise RowFault("type", f"{key!r} is {kind_name(context)}, not a string")
    reply = Turn("assistant", text_of(row, answer))
    asked = Turn("user", instruction)
    if context is not None and context.strip().lower() not in _NO_INPUT:
        asked = Turn("user", f"{instruction}\n\n{context}", input=context)
    return (asked, reply), {"instruction", key, answer}


def _alpaca(row: Row) -> list[Parsed]:
    return [_instructed(row, text_of(row, "instruction"))]


def _pair(row: Row, asked: str, answered: str) -> list[Parsed]:
    answer = _answer_key(row, answered)
    turns = Turn("user", text_of(row, asked)), Turn("assistant", text_of(row, answer))
    return [(turns, {asked, answer})]


def _prompt_completion(row: Row) -> list[Parsed]:
    """Two texts, or two lists of messages; replies within the prompt are not learned."""
    answer = _answer_key(row, "completion")
    if not any(isinstance(row.get(key), list) for key in ("prompt", answer)):
        return _pair(row, "prompt", answer)

    def side(key: str, role: str) -> tuple[Turn, ...]:
        is_text = isinstance(value_of(row, key), str)
        return (Turn(role, text_of(row, key)),) if is_text else turns_of(row, key)

    prompt = (
        replace(turn, weight=0.0) if turn.role == "assistant" and turn.weight is None else turn
        for turn in side("prompt", "user")
    )
    return [((*prompt, *side(answer, "assistant")), {"prompt", answer})]


def _seed_tasks(row: Row) -> list[Parsed]:
    """An instruction with several instances of input and output: one conversation for each."""
    instances, instruction = value_of(row, "instances"), text_of(row, "instruction")
    if not isinstance(instances, list):
        raise RowFault("type", f"'instances' is {kind_name(instances)}, not a list")
    if not instances:
        raise RowFault("no-turns", "'instances' is empty")
    found: list[Parsed] = []
    for number, instance in enumerate(instances, 1):
        place = f"instances[{number}]"
        if not isinstance(instance, dict):
            raise RowFault("type", f"{place} is {kind_name(instance)}, not an object")
        try:
            turns, _ = _instructed(instance, instruction)
        except RowFault as fault:
            raise RowFault(fault.code, f"{place}: {fault.message}", fault.hint) from None
        found.append((turns, {"instruction", "instances"}))
    return found


def _text(row: Row) -> list[Parsed]:
    text = text_of(row, "text")
    turns = marked_turns(text)
    if turns is not None:
        return [(turns, {"text"})]
    mark = _MARK.search(text)
    if mark is None:
        said = "the text has no turns: nobody asks and nobody answers"
        raise RowFault("plain-text", said, "--format text learns it whole")
    said = f"the text has marks, such as {mark.group()!r}, but no turns that they part"
    hint = "give messages; with --format text such marks would be learned as letters"
    raise RowFault("plain-text", said, hint)


def _answer_key(row: Row, usual: str) -> str:
    """The key of the answer: the usual one, or else the only other that the row has."""
    return usual if row.get(usual) is not None else _only(row, (usual, *_ANSWERS))


def _only(row: Row, keys: tuple[str, ...]) -> str:
    there = {key for key in keys if row.get(key) is not None}
    return there.pop() if len(there) == 1 else keys[0]


_PARSERS: dict[str, Callable[[Row], list[Parsed]]] = {
    "openai": lambda row: _messages(row, "messages"),
    "sharegpt": lambda row: _messages(row, "conversations", "conversation"),
    "alpaca": _alpaca,
    "seed-tasks": _seed_tasks,
    "openhermes": lambda row: _messages(row, "conversations", "conversation"),
    "prompt-completion": _prompt_completion,
    "instruction-output": _alpaca,
    "input-output": lambda row: _pair(row, "input", "output"),
    "question-answer": lambda row: _pair(row, "question", "answer"),
    "inputs-targets": lambda row: _pair(row, "inputs", "targets"),
    "text": _text,
}
FORMATS = tuple(_PARSERS)
