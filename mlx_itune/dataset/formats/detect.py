"""Which format a row has, and its conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from mlx_itune.dataset.conversation import TEXT_KIND, Conversation, Turn, find_problem
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats import pairs
from mlx_itune.dataset.formats.chat import plain_turns, turns_of
from mlx_itune.dataset.formats.fields import Parsed, Row, system_turn, tags_of, text_of
from mlx_itune.dataset.formats.mapping import map_example, mapped
from mlx_itune.dataset.formats.marked import marked_turns
from mlx_itune.dataset.formats.shapes import Pair, Shapes
from mlx_itune.dataset.formats.tools import tools_of
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.wording import listing

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
_ANSWERED = frozenset({"alpaca", "prompt-completion", "question-answer"})


def parse_row(
    value: dict[str, Any],
    origin: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Conversation:
    """The conversation in a row that holds just one. Raises RowFault."""
    found = parse_rows(value, origin, format=format, columns=columns)
    if len(found) > 1:
        raise RowFault("several", f"the row holds {len(found)} conversations")
    return found[0]


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
    if columns is not None:
        fields, rest = mapped(value, columns)
        chosen = _checked(format) or _sign(dict.fromkeys(columns, "x"), whole=True)
        if _sign(dict.fromkeys(columns, "x"), whole=True) is None:
            # The mapping names a part of a row or tags only: the rest has names of its own.
            fields, rest = {**rest, **fields}, {}
        return _parsed(fields, origin, chosen, rest, forced=format)
    if format is None:
        conversation = _shapes.read(value, origin)
        if conversation is not None:
            return (conversation,)
    return _parsed(value, origin, _checked(format), {}, forced=format)


def detect(value: Row) -> str | None:
    """The format of a row, or None for none that is known."""
    name = _sign(value)
    if name == "sharegpt":
        turns = value.get("conversations") or value.get("conversation")
        weighted = isinstance(turns, list) and any(
            isinstance(turn, dict) and "weight" in turn for turn in turns
        )
        return "openhermes" if weighted or "system_prompt" in value else name
    if name == "alpaca" and not {"input", "context"} & value.keys():
        return "instruction-output"
    return name


def _parsed(
    value: Row, origin: str, name: str | None, rest: Row, *, forced: str | None
) -> tuple[Conversation, ...]:
    """The conversations of `value`; `rest` gives tags only."""
    name = name or _sign(value)
    if name is None:
        raise _unknown(value)
    found: tuple[Parsed, ...]
    kind: dict[str, str] = {}
    if name == "seed-tasks":
        found = _seed_tasks(value)
    elif name == "text":
        found, kind = _text(value, whole=forced == "text")
    else:
        found = (_PARSERS[name](value),)
    tools = tools_of(value)
    made = []
    for turns, used in found:
        problem = find_problem(turns, is_text=bool(kind) or value.get("kind") == TEXT_KIND)
        if problem:
            raise RowFault(*problem, _hint(problem[0], turns))
        if not any(turn.role == "assistant" for turn in turns):
            raise RowFault("no-reply", "no assistant turn, so there is nothing to learn")
        tags = {**tags_of(rest, ()), **tags_of(value, used | {"tools", "functions"}), **kind}
        made.append(Conversation(turns, origin, tools, tags, checked=True))
    return tuple(made)


def _sign(row: Row, *, whole: bool = False) -> str | None:
    """The format that the row's keys tell; keys without a value do so only if no others do.

    `whole`: both halves of a pair have to be there.
    """
    for key, name in _SIGNS:
        value = row.get(key)
        if value is None or value == "":
            continue
        # Half of a pair is a sign only as long as nothing else is whole.
        if name in _ANSWERED and not pairs.has_answer(row):
            continue
        if (name == "input-output" and not row.get("output")) or (
            name == "inputs-targets" and not row.get("targets")
        ):
            continue
        if name == "seed-tasks" and not row.get("instruction"):
            continue
        return name
    return None if whole else next((name for key, name in _SIGNS if key in row), None)


def _openai(row: Row) -> Parsed:
    turns = _listed(row, "messages", "role", "content")
    parsed = system_turn(row, turns)
    return Parsed(parsed.turns, parsed.used | {"messages"})


def _sharegpt(row: Row) -> Parsed:
    key = (
        "conversation" if "conversations" not in row and "conversation" in row else "conversations"
    )
    turns = _listed(row, key, "from", "value")
    parsed = system_turn(row, turns)
    return Parsed(parsed.turns, parsed.used | {key})


def _listed(row: Row, key: str, role_key: str, text_key: str) -> tuple[Turn, ...]:
    if key not in row:
        raise RowFault("missing-key", f"no key {key!r}")
    turns = plain_turns(row[key], role_key, text_key)
    return turns_of(row, key, role_key, text_key) if turns is None else turns


def _seed_tasks(row: Row) -> tuple[Parsed, ...]:
    if "instances" not in row:
        raise RowFault("missing-key", "no key 'instances'")
    return pairs.seed_tasks(row)


def _text(row: Row, *, whole: bool) -> tuple[tuple[Parsed, ...], dict[str, str]]:
    text = text_of(row, "text")
    if whole:
        parsed = Parsed((Turn("assistant", text),), frozenset({"text"}))
        return (parsed,), {"kind": TEXT_KIND}
    turns = marked_turns(text)
    if turns is None:
        raise RowFault(
            "plain-text",
            "the text has no turns: nobody asks and nobody answers",
            "--format text learns it whole",
        )
    parsed = system_turn(row, turns)
    return (Parsed(parsed.turns, parsed.used | {"text"}),), {}


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
}


# Formats of two texts: the keys of the question and, usually, of the answer.
_PAIRS = {
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "inputs-targets": ("inputs", "targets"),
    "input-output": ("input", "output"),
}
_NOT_PLAIN = frozenset({"system", "system_prompt", "tools", "functions", "metadata"})


def _plan(keys: tuple[str, ...]) -> Pair | None:
    """What rows with these keys are, as long as every key has a text."""
    row = dict.fromkeys(keys, "x")
    name = _sign(row, whole=True)
    if name not in _PAIRS or _NOT_PLAIN & row.keys():
        return None
    asked, usual = _PAIRS[name]
    answer = pairs.answer_key(row, usual)
    context = pairs.context_key(row) if name == "alpaca" else None
    context = context if context in row else None
    if answer not in row:
        return None
    used = {asked, answer, context}
    return Pair(asked, context, answer, tuple(key for key in keys if key not in used))


_shapes = Shapes(_plan)


def _checked(format: str | None) -> str | None:
    if format is None or format in FORMATS:
        return format
    near = closest(format, FORMATS)
    raise UsageError(
        f"no format {format!r}", hint=f"did you mean {near!r}?" if near else ", ".join(FORMATS)
    )


def _unknown(row: Row) -> RowFault:
    keys = listing(map(repr, row), most=6) or "none"
    if row and all(key.isdigit() for key in row):
        hint = "the table has no header: --map question=1 --map answer=2 says what its columns are"
        return RowFault("unknown-format", f"columns without names ({keys})", hint)
    known = {key for key, _ in _SIGNS}
    meant = {key: closest(key, known) for key in row if key.lower() not in known}
    near = next((f"is {key!r} meant to be {name!r}?" for key, name in meant.items() if name), "")
    hint = near or f"for instance {map_example(row)}"
    return RowFault("unknown-format", f"no key of a known format (found {keys})", hint)


def _hint(code: str, turns: tuple[Turn, ...]) -> str:
    if code != "role-order":
        return ""
    if turns[0].role in ("assistant", "tool"):
        return "`mlx-itune data clean` can drop what comes before the first user turn"
    if any(one.role == other.role for one, other in pairwise(turns)):
        return "join turns of the same role"
    return ""
