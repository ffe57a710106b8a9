"""Which format a row has, or what `--map field=column` says of it; and its conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from mlx_itune.dataset.conversation import TEXT_KIND, Conversation, Turn, find_problem
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.chat import marked_turns, turns_of
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
from mlx_itune.kit.wording import did_you_mean, listing

# Keys that a row of each kind has for certain, the most telling first.
_SIGNS = (
    ("messages", "openai"),
    ("conversations", "sharegpt"),
    ("conversation", "sharegpt"),
    ("instances", "seed-tasks"),
    ("instruction", "alpaca"),
    ("prompt", "prompt-completion"),
    ("question", "question-answer"),
    ("inputs", "inputs-targets"),
    ("input", "input-output"),
    ("text", "text"),
)
# Signs that are half of a pair, and the key of the other half; None: an answer under any name.
_HALVES = {
    "instruction": None,
    "prompt": None,
    "question": None,
    "instances": "instruction",
    "inputs": "targets",
    "input": "output",
}
# Marks of templates, which as plain text would be learned as letters.
_MARK = re.compile(r"<[|\uff5c]?\w+[|\uff5c]?>|\[/?[A-Z_]+\]")
# Fields that hold lists; all others hold text.
LISTS = frozenset({"messages", "conversations", "instances", "tools", "functions"})
TEXTS = frozenset(
    "instruction input output question answer prompt completion inputs targets text system "
    "response context".split()
)
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

# Other names of an answer, each safe where it is the only one in the row.
_ANSWERS = ("output", "response", "completion", "answer", "target", "targets")


def parse_rows(
    value: dict[str, Any],
    origin: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[Conversation, ...]:
    """The conversations in a row: one, or one for each instance of a seed task.

    `format` is one of FORMATS; None finds it out. `columns` says which column is which field; the
    other columns become tags. Raises RowFault; UsageError for an unknown format.
    """
    check_format(format)
    row, rest = value, dict[str, Any]()
    name = format
    if columns is not None:
        row, rest = mapped(value, columns)
        whole = _sign(dict.fromkeys(columns, "x"), whole=True)
        name = format or whole
        if whole is None:
            # The mapping names a part of a row or tags only: the rest has names of its own.
            row, rest = {**rest, **row}, {}
    name = name or _sign(row)
    if name is None:
        raise _unknown(row)
    kind: dict[str, str] = {}
    if name == "text" and format == "text":
        found = [Parsed((Turn("assistant", text_of(row, "text")),), frozenset({"text"}))]
        kind = {"kind": TEXT_KIND}
    else:
        found = _PARSERS[name](row)
    tools = tools_of(row)
    made = []
    for turns, used in found:
        problem = find_problem(turns, is_text=bool(kind) or row.get("kind") == TEXT_KIND)
        if problem:
            raise RowFault(*problem, _hint(problem[0], turns))
        if not any(turn.role == "assistant" for turn in turns):
            raise RowFault("no-reply", "no assistant turn, so there is nothing to learn")
        tags = {**tags_of(rest), **tags_of(row, used | {"tools", "functions"}), **kind}
        made.append(Conversation(turns, origin, tools, tags, checked=True))
    return tuple(made)


def check_format(name: str | None) -> None:
    """Raise UsageError for a format that is none of FORMATS."""
    if name is not None and name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or "one of " + ", ".join(FORMATS)
        raise UsageError(f"there is no format {name!r}", hint=hint)


def _sign(row: Row, *, whole: bool = False) -> str | None:
    """The format that the row's keys tell; keys without a value do so only if no others do.

    Half of a pair is a sign only as long as nothing else is whole; `whole`: not even then.
    """
    for key, name in _SIGNS:
        if row.get(key) is None or row[key] == "":
            continue
        if key not in _HALVES:
            return name
        other = _HALVES[key]
        if _has_answer(row) if other is None else row.get(other):
            return name
    return None if whole else next((name for key, name in _SIGNS if key in row), None)


def _openai(row: Row) -> Parsed:
    return with_system(row, turns_of(row, "messages", "role", "content"), "messages")


def _sharegpt(row: Row) -> Parsed:
    is_one = "conversations" not in row and "conversation" in row
    key = "conversation" if is_one else "conversations"
    return with_system(row, turns_of(row, key, "from", "value"), key)


def _text(row: Row) -> Parsed:
    text = text_of(row, "text")
    turns = marked_turns(text)
    if turns is not None:
        return with_system(row, turns, "text")
    mark = _MARK.search(text)
    if mark is None:
        said = "the text has no turns: nobody asks and nobody answers"
        raise RowFault("plain-text", said, "--format text learns it whole")
    raise RowFault(
        "plain-text",
        f"the text has marks, such as {mark.group()!r}, but no turns that they part",
        "give messages; with --format text such marks would be learned as letters",
    )


def _unknown(row: Row) -> RowFault:
    keys = listing(map(repr, row), most=6) or "none"
    if row and all(key.isdigit() for key in row):
        hint = "the table has no header: --map question=1 --map answer=2 says what its columns are"
        return RowFault("unknown-format", f"columns without names ({keys})", hint)
    known = {key for key, _ in _SIGNS}
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
    if any(one.role == other.role for one, other in pairwise(turns)):
        return "join turns of the same role"
    return ""


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UsageError for a mapping that cannot be meant: empty, or with a misspelt field."""
    if not columns:
        raise UsageError(
            "--map names no column", hint="--map instruction=question --map output=answer"
        )
    for field, column in columns.items():
        if not field or not column:
            raise UsageError(f"--map {field}={column} lacks a name", hint="write field=column")
        near = get_close_matches(field, sorted(TEXTS | LISTS), 1, _NEAR)
        if near and field not in TEXTS | LISTS:
            raise UsageError(
                f"--map {field}={column}: no field {field!r}", hint=f"did you mean {near[0]}?"
            )


def names_positions(columns: Mapping[str, str]) -> bool:
    """Whether every column is a number, which is how a table without a header is addressed."""
    return all(column.isdigit() for column in columns.values())


def mapped(row: Row, columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `columns` names with their values, and the rest of the row.

    Numbers become text. Raises RowFault where a column is missing.
    """
    fields: dict[str, Any] = {}
    for field, column in columns.items():
        value = _lookup(row, column)
        is_nested = isinstance(value, (list, dict))
        if is_nested and field in TEXTS and field != "prompt":
            raise RowFault("type", f"the column {column!r} is {kind_name(value)}, not a text")
        is_plain = value is None or is_nested or field in LISTS
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


def _alpaca(row: Row) -> Parsed:
    """`instruction`, `input` (or Dolly's `context`) and `output` under one of its names."""
    turns, keys = _instructed(row, text_of(row, "instruction"))
    return with_system(row, turns, "instruction", *keys)


def _pair(row: Row, asked: str, answered: str) -> Parsed:
    """Two texts, the second under one of its names."""
    answer = _answer_key(row, answered)
    turns = (Turn("user", text_of(row, asked)), Turn("assistant", text_of(row, answer)))
    return with_system(row, turns, asked, answer)


def _prompt_completion(row: Row) -> Parsed:
    """Two texts, or two lists of messages; replies within the prompt are not learned."""
    answer = _answer_key(row, "completion")
    if not any(isinstance(row.get(key), list) for key in ("prompt", answer)):
        return _pair(row, "prompt", answer)
    prompt: tuple[Turn, ...]
    if isinstance(value_of(row, "prompt"), str):
        prompt = (Turn("user", text_of(row, "prompt")),)
    else:
        prompt = tuple(map(_unlearned, turns_of(row, "prompt", "role", "content")))
    if isinstance(value_of(row, answer), str):
        reply: tuple[Turn, ...] = (Turn("assistant", text_of(row, answer)),)
    else:
        reply = turns_of(row, answer, "role", "content")
    return with_system(row, (*prompt, *reply), "prompt", answer)


def _seed_tasks(row: Row) -> list[Parsed]:
    """An instruction with several instances of input and output: one conversation for each."""
    instances, instruction = value_of(row, "instances"), text_of(row, "instruction")
    if not isinstance(instances, list):
        raise RowFault("type", f"'instances' is {kind_name(instances)}, not a list")
    if not instances:
        raise RowFault("no-turns", "'instances' is empty")
    found = []
    for number, instance in enumerate(instances, 1):
        place = f"instances[{number}]"
        if not isinstance(instance, dict):
            raise RowFault("type", f"{place} is {kind_name(instance)}, not an object")
        try:
            turns, _ = _instructed(instance, instruction)
        except RowFault as fault:
            raise RowFault(fault.code, f"{place}: {fault.message}", fault.hint) from None
        found.append(with_system(row, turns, "instruction", "instances"))
    return found


def _has_answer(row: Row) -> bool:
    """Whether the row has an answer under any name."""
    return any(row.get(key) for key in _ANSWERS)


def _instructed(row: Row, instruction: str) -> tuple[tuple[Turn, Turn], tuple[str, str]]:
    """An instruction, whose input is a part of its own, and the answer; and the row's keys."""
    key, answer = _only(row, ("input", "context")), _answer_key(row, "output")
    context = row.get(key)
    if context is not None and not isinstance(context, str):
        raise RowFault("type", f"{key!r} is {kind_name(context)}, not a string")
    reply = Turn("assistant", text_of(row, answer))
    asked = Turn("user", instruction)
    if context is not None and context.strip().lower() not in _NO_INPUT:
        asked = Turn("user", f"{instruction}\n\n{context}", input=context)
    return (asked, reply), (key, answer)


def _answer_key(row: Row, usual: str) -> str:
    """The key of the answer: the usual one, or else the only other that the row has."""
    return usual if row.get(usual) is not None else _only(row, (usual, *_ANSWERS))


def _only(row: Row, keys: tuple[str, ...]) -> str:
    there = {key for key in keys if row.get(key) is not None}
    return there.pop() if len(there) == 1 else keys[0]


def _unlearned(turn: Turn) -> Turn:
    if turn.role != "assistant" or turn.weight is not None:
        return turn
    return replace(turn, weight=0.0)


def _one(parser: Callable[..., Parsed], *keys: str) -> Callable[[Row], list[Parsed]]:
    return lambda row: [parser(row, *keys)]


_PARSERS = {
    "openai": _one(_openai),
    "sharegpt": _one(_sharegpt),
    "alpaca": _one(_alpaca),
    "seed-tasks": _seed_tasks,
    "openhermes": _one(_sharegpt),
    "prompt-completion": _one(_prompt_completion),
    "instruction-output": _one(_alpaca),
    "input-output": _one(_pair, "input", "output"),
    "question-answer": _one(_pair, "question", "answer"),
    "inputs-targets": _one(_pair, "inputs", "targets"),
    "text": _one(_text),
}
FORMATS = tuple(_PARSERS)
