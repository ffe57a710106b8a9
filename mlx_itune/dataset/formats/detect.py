"""Which format a row has, and its conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from mlx_itune.dataset.conversation import TEXT_KIND, Conversation, Turn, find_problem
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats import pairs
from mlx_itune.dataset.formats.chat import marked_turns, turns_of
from mlx_itune.dataset.formats.fields import (
    Parsed,
    Row,
    map_example,
    tags_of,
    text_of,
    tools_of,
    with_system,
)
from mlx_itune.dataset.formats.mapping import mapped
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.wording import did_you_mean, listing

FORMATS = (
    "openai",
    "sharegpt",
    "alpaca",
    "seed-tasks",
    "openhermes",
    "prompt-completion",
    "instruction-output",
    "input-output",
    "question-answer",
    "inputs-targets",
    "text",
)
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
    if format is not None and format not in FORMATS:
        hint = did_you_mean(format, FORMATS) or ", ".join(FORMATS)
        raise UsageError(f"no format {format!r}", hint=hint)
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
    if name == "seed-tasks":
        found = pairs.seed_tasks(row)
    elif name == "text" and format == "text":
        found = (Parsed((Turn("assistant", text_of(row, "text")),), frozenset({"text"})),)
        kind = {"kind": TEXT_KIND}
    else:
        found = (_PARSERS[name](row),)
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
        if pairs.has_answer(row) if other is None else row.get(other):
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


_PARSERS: dict[str, Callable[[Row], Parsed]] = {
    "openai": _openai,
    "sharegpt": _sharegpt,
    "openhermes": _sharegpt,
    "alpaca": pairs.alpaca,
    "instruction-output": pairs.alpaca,
    "prompt-completion": pairs.prompt_completion,
    "question-answer": lambda row: pairs.pair(row, "question", "answer"),
    "inputs-targets": lambda row: pairs.pair(row, "inputs", "targets"),
    "input-output": lambda row: pairs.pair(row, "input", "output"),
    "text": _text,
}


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
