"""Rows that ask once and answer once: Alpaca and its kin, seed tasks, prompt/completion."""

from __future__ import annotations

from dataclasses import replace

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.chat import turns_of
from mlx_itune.dataset.formats.fields import (
    Parsed,
    Row,
    kind_name,
    text_of,
    value_of,
    with_system,
)

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


def alpaca(row: Row) -> Parsed:
    """`instruction`, `input` (or Dolly's `context`) and `output` under one of its names."""
    turns, keys = _instructed(row, text_of(row, "instruction"))
    return with_system(row, turns, "instruction", *keys)


def pair(row: Row, asked: str, answered: str) -> Parsed:
    """Two texts, the second under one of its names."""
    answer = _answer_key(row, answered)
    turns = (Turn("user", text_of(row, asked)), Turn("assistant", text_of(row, answer)))
    return with_system(row, turns, asked, answer)


def prompt_completion(row: Row) -> Parsed:
    """Two texts, or two lists of messages; replies within the prompt are not learned."""
    answer = _answer_key(row, "completion")
    if not any(isinstance(row.get(key), list) for key in ("prompt", answer)):
        return pair(row, "prompt", answer)
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


def seed_tasks(row: Row) -> tuple[Parsed, ...]:
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
    return tuple(found)


def has_answer(row: Row) -> bool:
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
