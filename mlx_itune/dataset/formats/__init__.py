"""One raw row of any accepted format -> its conversation, or the fault that it has.

| format | keys |
|---|---|
| openai | `messages` [{role, content, tool_calls?, function_call?, weight?, name?}], `tools`? |
| sharegpt | `conversations` [{from, value}] (or role, content; or rounds), `system`?, `tools`? |
| openhermes | the same with `weight` in turns (null: as the run decides) and `system_prompt`? |
| gemini | `contents` [{role, parts}], `systemInstruction`? |
| preference | `prompt` (or `question`...), `chosen`, `rejected`: the chosen side |
| seed-tasks | `instruction`, `instances` [{input, output}]: a conversation for each |
| alpaca | `instruction`, `input` (or `context`), `output` (or `generation`...), `history`? |
| instruction-output | the same without `input` |
| prompt-completion | `prompt`, `completion`: texts or lists of messages |
| the same | answers that `eval --out` or `generate --out` kept: `prompt`, `reference` |
| query-response | `query`, `response` |
| question-answer | `question`, `context`?, `answer` (or `answers`, as SQuAD has them) |
| inputs-targets | `inputs`, `targets`, as FLAN writes them |
| input-output | `input`, `output` |
| text | `text` in which marks part the turns; forced, any text: it is learned whole |

The format is found per row: null and empty keys do not count, nor do case and spaces of names. What
a format does not use becomes a tag of the conversation, as text; what is dropped is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from mlx_itune.dataset.conversation import (
    DRAFT_KIND,
    TEXT_KIND,
    Conversation,
    RowFault,
    Turn,
    find_problem,
)
from mlx_itune.dataset.formats.chat import THOUGHTS, marked_turns, thought_apart, turns_of
from mlx_itune.dataset.formats.fields import (
    Parsed,
    Row,
    as_text,
    json_list,
    kind_name,
    map_example,
    plain_text,
    tags_of,
    text_of,
    tools_of,
    value_of,
    with_system,
)
from mlx_itune.dataset.formats.shapes import MASKS, from_parts
from mlx_itune.dataset.how import LISTS, TEXTS, Account, Reading
from mlx_itune.kit.errors import closest
from mlx_itune.kit.wording import did_you_mean, known, listing

# Other names of an answer, each safe where it is the only one in the row.
_ANSWERS = (
    "output", "response", "completion", "answer", "target", "targets", "generation", "answers",
)  # fmt: skip
_ASKED = ("prompt", "question", "instruction", "input")
# Keys that tell a format, the most telling first; half of a pair does so with one of its halves.
_SIGNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("messages", "openai", ()),
    ("conversations", "sharegpt", ()),
    ("conversation", "sharegpt", ()),
    ("contents", "gemini", ()),
    ("chosen", "preference", ()),
    ("instances", "seed-tasks", ("instruction",)),
    ("instruction", "alpaca", _ANSWERS),
    ("prompt", "prompt-completion", (*_ANSWERS, "reference")),
    ("question", "question-answer", _ANSWERS),
    ("query", "query-response", _ANSWERS),
    ("inputs", "inputs-targets", ("targets",)),
    ("input", "input-output", _ANSWERS),
    ("text", "text", ()),
)
_NAMES = {sign for sign, *_ in _SIGNS} | TEXTS | LISTS | {*_ANSWERS}
# Beside a prompt and its reference: what tells kept answers of a model, and what else they have.
_KEPT_SIGNS = ({"answer", "score"}, {"text", "finish_reason"})
_KEPT = frozenset(
    "answer score token_f1 fault base base_score judge base_judge row index text "
    "prompt_tokens completion_tokens finish_reason".split()
)
# Marks of templates, which as plain text would be learned as letters.
_MARK = re.compile(r"<[|\uff5c]?\w+[|\uff5c]?>|\[/?[A-Z_]+\]")
# Faults of a table whose columns nobody named.
_NOBODY_ASKS = frozenset({"unknown-format", "plain-text", "missing-key"})
_CLOSES = re.compile(r"</think>|\[/THINK\]")
# What a column called `reasoning` says of a model's mode; it is no thought.
_MODES = frozenset("on off true false yes no none low medium high minimal auto think".split())
# Spellings of "there is no input" that Alpaca's generator and its descendants wrote, without
# regard to case and space around. Add what your data has.
NO_INPUT = [
    "", "<noinput>", "<no input>", "<no_input>", "noinput", "no input", "no_input", "no input.",
    "(no input)", "[no input]", "no input required", "no input needed", "no input provided", "n/a",
    "na", "none", "none.", "null", "nil", "-",
]  # fmt: skip
_NO_INPUT = frozenset(NO_INPUT)


def parse_rows(value: dict[str, Any], origin: str, how: Reading) -> tuple[Conversation, ...]:
    """The conversations in a row: one, or one for each instance of a seed task.

    Raises RowFault; UsageError for an unknown format.
    """
    try:
        made = _parsed(value, origin, how)
    except RowFault as fault:
        how.told.row(None)
        if fault.code in _NOBODY_ASKS:
            how.told.refuse(value)
        raise
    tags = made[0].tags if made else {}
    how.told.row([key for key in tags if key not in how.columns] if how.columns else tags.keys())
    return made


def _parsed(value: dict[str, Any], origin: str, how: Reading) -> tuple[Conversation, ...]:
    check_format(how.format)
    if value.get("kind") == DRAFT_KIND:
        hint = "accept it first: mlx-itune data review DRAFTS --out DIR"
        raise RowFault("draft", "a draft, which nobody has accepted yet", hint)
    odd = [key for key in value if key not in _NAMES and key.strip().lower() in _NAMES]
    if odd and how.columns is None and "messages" not in value:
        usual = {key: low for key in odd if (low := key.strip().lower()) not in value}
        value = {usual.get(key, key): item for key, item in value.items()}
    row, rest = value, dict[str, Any]()
    name = how.format
    if how.columns is not None:
        row, rest = _mapped(value, how.columns)
        whole = _sign(dict.fromkeys(how.columns, "x"), whole=True)
        name = how.format or whole
        if whole is None:
            # The mapping names a part of a row or tags only: the rest has names of its own.
            row, rest = {**rest, **row}, {}
    name = name or _sign(row)
    if name is None:
        raise _unknown(row)
    is_plain = how.format == "text"
    if is_plain:
        text = text_of(row, "text", how.told)
        found: list[Parsed] = [((Turn("assistant", text),), {"text"})]
    else:
        found = [_with_thoughts(row, *parsed, how.told) for parsed in _PARSERS[name](row, how)]
    tools = tools_of(row)
    made = []
    for turns, used in found:
        problem = find_problem(turns, is_text=is_plain or row.get("kind") == TEXT_KIND)
        if problem:
            raise RowFault(*problem, _hint(problem[0], turns))
        if turns[-1].role != "assistant":
            if not any(turn.role == "assistant" for turn in turns):
                raise RowFault("no-reply", "no assistant turn, so there is nothing to learn")
            how.told.lose("turns after the last answer")
        tags = tags_of(row, used | {"tools", "functions"})
        if rest:
            tags = {**tags_of(rest), **tags}
        if is_plain:
            tags["kind"] = TEXT_KIND
        made.append(Conversation(turns, origin, tools, tags, checked=True))
    return tuple(made)


def check_format(name: str | None) -> None:
    """Raise UsageError for a format that is none of FORMATS."""
    if name is not None:
        known("format", name, FORMATS)


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
        is_plain = value is None or isinstance(value, (list, dict)) or field in LISTS
        fields[field] = value if is_plain else as_text(value)
    taken = {column.strip().lower() for column in columns.values()}
    return fields, {key: item for key, item in row.items() if key.strip().lower() not in taken}


def _lookup(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    if alike := [key for key in row if key.strip().lower() == column.strip().lower()]:
        return row[alike[0]]
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
        return "a system turn comes before a question, and no other stands beside it"
    same = any(one.role == other.role for one, other in pairwise(turns))
    return "join turns of the same role" if same else ""


def _with_thoughts(row: Row, turns: tuple[Turn, ...], used: set[str], told: Account) -> Parsed:
    """Turns with the row's system prompt, and their thoughts apart from their words: those that a
    reply begins with, and the column of one that is the only reply."""
    if any(_CLOSES.search(turn.content) for turn in turns):
        apart = tuple(map(thought_apart, turns))
        if apart != turns:
            told.take("what an answer begins with, up to </think>, as reasoning")
        turns = apart
    replies = [turn for turn in turns if turn.role == "assistant"]
    for key in THOUGHTS if len(replies) == 1 and replies[0].reasoning is None else ():
        value = row.get(key)
        if isinstance(value, str) and value.strip() and value.strip().lower() not in _MODES:
            thinking = replace(replies[0], reasoning=value.strip())
            turns = tuple(thinking if turn is replies[0] else turn for turn in turns)
            used = {*used, key}
            break
    return with_system(row, turns, used, told)


def _messages(row: Row, how: Reading, keys: tuple[str, ...]) -> list[Parsed]:
    key = next((key for key in keys if row.get(key) is not None), keys[0])
    turns, used = turns_of(row, key, how), {key, *MASKS}
    better = row.get("chosen")
    if turns and turns[-1].role in ("user", "tool") and isinstance(better, (str, dict)):
        turns, used = (*turns, *_side(row, "chosen", "assistant", how)), used | _dropped(row, how)
    return [(turns, used)]


def _gemini(row: Row, how: Reading) -> list[Parsed]:
    used, instructs = {"contents"}, ("systemInstruction", "system_instruction")
    contents = json_list(value_of(row, "contents"), "'contents'")
    turns = turns_of({"contents": from_parts(contents)}, "contents", how)
    for key in instructs:
        if said := row.get(key):
            system = from_parts([{**said, "role": "system"} if isinstance(said, dict) else said])
            turns, used = (*turns_of({key: system}, key, how), *turns), {*used, key}
    return [(turns, used)]


def _pair(
    row: Row, how: Reading, asked: str, answered: str, contexts: tuple[str, ...] = ()
) -> list[Parsed]:
    """A question, whose input or context is a part of its own, and the answer under one of its
    names; earlier rounds come first."""
    answer = _answer_key(row, answered)
    question, used = text_of(row, asked, how.told), {asked, answer}
    turn = Turn("user", question)
    if contexts:
        key = _only(row, contexts)
        used.add(key)
        if (context := row.get(key)) is not None:
            if not isinstance(context, str):
                context = plain_text(context, repr(key), how.told)
            spelled = context.strip().lower()
            if spelled and spelled not in (how.no_input or _NO_INPUT):
                turn = Turn("user", f"{question}\n\n{context}", input=context)
            else:
                how.told.take(f"{key} {spelled!r} as no input")
    reply = Turn("assistant", _answer(row, answer, how.told))
    earlier: tuple[Turn, ...] = ()
    if history := row.get("history"):
        earlier = turns_of({"history": json_list(history, "'history'")}, "history", how)
        used.add("history")
    return [((*earlier, turn, reply), used)]


def _answer(row: Row, key: str, told: Account) -> str:
    """The answer under `key`; of several, as SQuAD lists them, the first."""
    value = row.get(key)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]
    elif key != "answers":
        return text_of(row, key, told)
    if not isinstance(value, list):
        return text_of(row, key, told)
    if len({*map(as_text, value)}) > 1:
        told.lose(f"{key!r} after the first")
    return text_of({key: value[0] if value else ""}, key, told)


def _side(row: Row, key: str, role: str, how: Reading) -> tuple[Turn, ...]:
    """One side of a row: a text, a message or a list of them."""
    value = value_of(row, key)
    if isinstance(value, dict) and {"content", "value"} & value.keys():
        value = [value]
    if isinstance(value, list):
        return turns_of({key: value}, key, how)
    return (Turn(role, text_of(row, key, how.told)),)


def _prompt_completion(row: Row, how: Reading) -> list[Parsed]:
    """Two texts, or two lists of messages; replies within the prompt are not learned."""
    kept = any(sign <= row.keys() for sign in _KEPT_SIGNS) and isinstance(row.get("reference"), str)
    if kept:
        # What a model once said is not what it should learn.
        how.told.take("'reference' as the answer, not what a model answered")
    answer = "reference" if kept else _answer_key(row, "completion")
    spent = {"prompt", answer, *(_KEPT if kept else ())}
    if row.get("label") is False:
        hint = "leave such rows out: they are for preference training"
        raise RowFault("unwanted", "'label' is false: the answer is one that is not wanted", hint)
    if not any(isinstance(row.get(key), list) for key in ("prompt", answer)):
        return [(turns, used | spent) for turns, used in _pair(row, how, "prompt", answer)]
    prompt = (
        replace(turn, weight=0.0) if turn.role == "assistant" and turn.weight is None else turn
        for turn in _side(row, "prompt", "user", how)
    )
    return [((*prompt, *_side(row, answer, "assistant", how)), spent)]


def _preference(row: Row, how: Reading) -> list[Parsed]:
    """The chosen side of two; it may hold the prompt itself, as turns or as marked text."""
    used = _dropped(row, how)
    chosen = _side(row, "chosen", "assistant", how)
    if chosen and chosen[0].role == "assistant":
        parted = marked_turns(chosen[0].content)
        asked = next((key for key in _ASKED if row.get(key)), None)
        if parted and asked is None:
            return [(parted, used)]
        whole = {"prompt": value_of(row, asked or "prompt"), "completion": row["chosen"]}
        return [(turns, used | {asked or "prompt"}) for turns, _ in _prompt_completion(whole, how)]
    said = {turn.content for turn in chosen}
    return [(chosen, {*used, *(key for key in _ASKED if as_text(row.get(key)) in said)})]


def _dropped(row: Row, how: Reading) -> set[str]:
    if row.get("rejected") is not None:
        how.told.lose("'rejected': of the two, 'chosen' is learned")
    return {"chosen", "rejected"}


def _seed_tasks(row: Row, how: Reading) -> list[Parsed]:
    """An instruction with several instances of input and output: one conversation for each."""
    instances, instruction = value_of(row, "instances"), value_of(row, "instruction")
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
            ((turns, used),) = _PARSERS["alpaca"]({**instance, "instruction": instruction}, how)
        except RowFault as fault:
            raise RowFault(fault.code, f"{place}: {fault.message}", fault.hint) from None
        for key in instance.keys() - used:
            how.told.lose(f"{key!r} of an instance")
        found.append((turns, {"instruction", "instances"}))
    return found


def _text(row: Row, how: Reading) -> list[Parsed]:
    text = text_of(row, "text", how.told)
    turns = marked_turns(text)
    if turns is not None:
        return [(turns, {"text"})]
    mark = _MARK.search(text)
    if mark is None:
        said = "the text has no turns: nobody asks and nobody answers"
        others = [key for key in row if key != "text" and row[key] not in (None, "")]
        mapped = f"{map_example({**dict.fromkeys(others), 'text': text})}, or " if others else ""
        raise RowFault("plain-text", said, f"{mapped}--format text learns it whole")
    said = f"the text has marks, such as {mark.group()!r}, but no turns that they part"
    raise RowFault("plain-text", said, "give messages: a model does not learn marks from letters")


def _answer_key(row: Row, usual: str) -> str:
    """The key of the answer: the usual one, or else the only other that the row has."""
    return usual if row.get(usual) is not None else _only(row, (usual, *_ANSWERS))


def _only(row: Row, keys: tuple[str, ...]) -> str:
    there = {key for key in keys if row.get(key) is not None}
    return there.pop() if len(there) == 1 else keys[0]


_Parser = Callable[[Row, Reading], list[Parsed]]
_CHATS = {"openai": ("messages",), "sharegpt": ("conversations", "conversation")}
# The question, the usual name of its answer, and what may be a part of the question.
_PAIRS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "alpaca": ("instruction", "output", ("input", "context")),
    "instruction-output": ("instruction", "output", ("input", "context")),
    "input-output": ("input", "output", ()),
    "question-answer": ("question", "answer", ("context",)),
    "query-response": ("query", "response", ()),
    "inputs-targets": ("inputs", "targets", ()),
}
_PARSERS: dict[str, _Parser] = {
    **{name: partial(_messages, keys=keys) for name, keys in _CHATS.items()},
    "openhermes": partial(_messages, keys=_CHATS["sharegpt"]),
    "gemini": _gemini,
    "preference": _preference,
    "prompt-completion": _prompt_completion,
    "seed-tasks": _seed_tasks,
    **{
        name: partial(_pair, asked=asked, answered=answered, contexts=contexts)
        for name, (asked, answered, contexts) in _PAIRS.items()
    },
    "text": _text,
}
FORMATS = tuple(_PARSERS)
