"""Rows that ask once and answer once: Alpaca and its kin, seed tasks, prompt/completion."""

from __future__ import annotations

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.chat import turns_of
from mlx_itune.dataset.formats.fields import Parsed, Row, kind_name, system_turn, text_of

# Spellings of "there is no input" that Alpaca's generator and its descendants wrote, without
# regard to case and space around. Add what your data has.
NO_INPUT = [
    "",
    "<noinput>",
    "<no input>",
    "<no_input>",
    "noinput",
    "no input",
    "no_input",
    "no input.",
    "(no input)",
    "[no input]",
    "no input required",
    "no input needed",
    "no input provided",
    "n/a",
    "na",
    "none",
    "none.",
    "null",
    "nil",
    "-",
]
_no_input = frozenset(NO_INPUT)
_no_input_length = max(map(len, NO_INPUT))

# Other names of an answer, each safe where it is the only one in the row.
_ANSWERS = ("output", "response", "completion", "answer", "target", "targets")
_CONTEXTS = ("input", "context")


def alpaca(row: Row) -> Parsed:
    """`instruction`, `input` (or Dolly's `context`) and `output` under one of its names."""
    context, answer = context_key(row), answer_key(row, "output")
    turns = _asked_and_answered(row, text_of(row, "instruction"), context, answer)
    parsed = system_turn(row, turns)
    return Parsed(parsed.turns, parsed.used | {"instruction", context, answer})


def pair(row: Row, asked: str, answered: str) -> Parsed:
    """Two texts, the second under one of its names."""
    answer = answer_key(row, answered)
    turns = (Turn("user", text_of(row, asked)), Turn("assistant", text_of(row, answer)))
    parsed = system_turn(row, turns)
    return Parsed(parsed.turns, parsed.used | {asked, answer})


def prompt_completion(row: Row) -> Parsed:
    """Two texts, or two lists of messages; replies within the prompt are not learned."""
    answer = answer_key(row, "completion")
    if not any(isinstance(row.get(key), list) for key in ("prompt", answer)):
        return pair(row, "prompt", answer)
    if "prompt" not in row:
        raise RowFault("missing-key", "no key 'prompt'")
    if isinstance(row["prompt"], str):
        prompt: tuple[Turn, ...] = (Turn("user", text_of(row, "prompt")),)
    else:
        prompt = tuple(map(_unlearned, turns_of(row, "prompt", "role", "content")))
    if isinstance(row.get(answer), str):
        reply: tuple[Turn, ...] = (Turn("assistant", text_of(row, answer)),)
    elif answer in row:
        reply = turns_of(row, answer, "role", "content")
    else:
        raise RowFault("missing-key", f"no key {answer!r}")
    parsed = system_turn(row, (*prompt, *reply))
    return Parsed(parsed.turns, parsed.used | {"prompt", answer})


def seed_tasks(row: Row) -> tuple[Parsed, ...]:
    """An instruction with several instances of input and output: one conversation for each."""
    instruction = text_of(row, "instruction")
    instances = row["instances"]
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
            context, answer = context_key(instance), answer_key(instance, "output")
            turns = _asked_and_answered(instance, instruction, context, answer)
        except RowFault as fault:
            raise RowFault(fault.code, f"{place}: {fault.message}", fault.hint) from None
        parsed = system_turn(row, turns)
        found.append(Parsed(parsed.turns, parsed.used | {"instruction", "instances"}))
    return tuple(found)


def is_no_input(text: str) -> bool:
    """Whether a text is one of the spellings of "there is no input"."""
    text = text.strip()
    return len(text) <= _no_input_length and text.lower() in _no_input


def answer_key(row: Row, usual: str) -> str:
    """The key of the answer: the usual one, or else the only other that the row has."""
    return usual if row.get(usual) is not None else _only(row, (usual, *_ANSWERS))


def context_key(row: Row) -> str:
    """The key of Alpaca's input: `input`, or `context` where only that is there."""
    return _only(row, _CONTEXTS)


def has_answer(row: Row) -> bool:
    """Whether the row has an answer under any name."""
    return any(row.get(key) for key in _ANSWERS)


def _asked_and_answered(
    row: Row, instruction: str, context_key: str, answer_key: str
) -> tuple[Turn, Turn]:
    context = row.get(context_key)
    if context is not None and not isinstance(context, str):
        raise RowFault("type", f"{context_key!r} is {kind_name(context)}, not a string")
    reply = Turn("assistant", text_of(row, answer_key))
    if context is None or is_no_input(context):
        return Turn("user", instruction), reply
    return Turn("user", f"{instruction}\n\n{context}", input=context), reply


def _only(row: Row, keys: tuple[str, ...]) -> str:
    there = {key for key in keys if row.get(key) is not None}
    return there.pop() if len(there) == 1 else keys[0]


def _unlearned(turn: Turn) -> Turn:
    if turn.role != "assistant" or turn.weight is not None:
        return turn
    return Turn(turn.role, turn.content, 0.0, turn.tool_calls, turn.name)
