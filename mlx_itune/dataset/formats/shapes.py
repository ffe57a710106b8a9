"""Lists that are no messages yet: rounds, Gemini's parts, and masks that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_itune.dataset.conversation import RowFault
from mlx_itune.dataset.formats.fields import Row, as_text
from mlx_itune.dataset.how import Account

# Flags of a turn that say whether it is learned; null says nothing.
FLAGS = ("weight", "train", "training", "trainable", "loss", "loss_mask")
_ROUND_FLAG = "output_with_loss"
# Lists of a row that say which of its turns are learned.
MASKS = ("loss_masks", "loss_mask")
# The sides of a round in lists that have rounds rather than turns.
_SIDES = (
    ("input", "output"), ("human", "assistant"), ("user", "assistant"), ("human", "gpt"),
    ("question", "answer"), ("prompt", "response"), ("instruction", "output"), ("q", "a"),
)  # fmt: skip


def in_rounds(items: list[Any], key: str, told: Account) -> list[Any]:
    """Rounds as messages: objects of two sides, pairs, or texts by turns; else the items."""
    if len(items) % 2 == 0 and all(isinstance(item, str) for item in items):
        items = [items[n : n + 2] for n in range(0, len(items), 2)]
    made: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        flags: dict[str, Any] = {}
        sides = (item if isinstance(item, list) else [])[:2]
        if isinstance(item, dict):
            used = next((pair for pair in _SIDES if {*pair} <= item.keys()), ())
            sides = [item[side] for side in used]
            if item.get("system"):
                made.append({"role": "system", "content": item["system"]})
            flags = {key: item[key] for key in FLAGS if key in item}
            flags |= {"loss_mask": item[_ROUND_FLAG]} if _ROUND_FLAG in item else {}
            for other in item.keys() - {*used, "system", _ROUND_FLAG, *FLAGS}:
                told.lose(f"{other!r} of a round")
        if len(sides) != 2 or (isinstance(item, list) and len(item) > 2):
            reason = f"{key}[{number}] has neither a role nor two sides"
            raise RowFault("missing-key", reason, "give each turn a role and a content")
        made.append({"role": "user", "content": sides[0]})
        made.append({"role": "assistant", "content": sides[1], **flags})
    return made


def masked(items: list[Any], row: Row, roles: Mapping[str, str]) -> list[Any]:
    """Messages with the flags that a list in the row has for them, or for the replies alone."""
    name = next((name for name in MASKS if isinstance(row.get(name), list)), None)
    if name is None:
        return items
    flags = iter(row[name])
    named = [
        str(i.get("role") or i.get("from")).lower() if isinstance(i, dict) else "" for i in items
    ]
    replies = [number for number, name in enumerate(named) if roles.get(name) == "assistant"]
    if len(row[name]) not in (len(items), len(replies)):
        said = f"{name!r} has {len(row[name])} entries, for {len(items)} turns"
        raise RowFault("weight", said, "give one for each turn, or for each reply")
    chosen = replies if len(row[name]) == len(replies) else range(len(items))
    return [
        {**item, "loss_mask": next(flags)} if number in chosen and named[number] else item
        for number, item in enumerate(items)
    ]


def from_parts(contents: list[Any]) -> list[Any]:
    """Gemini's contents, which are parts, as messages."""
    made: list[Any] = []
    for item in contents:
        if not isinstance(item, dict):
            made.append({"role": "system", "content": item} if isinstance(item, str) else item)
            continue
        rest = {key: value for key, value in item.items() if key != "parts"}
        said: list[Any] = []
        calls = []
        parts = item.get("parts") or []
        for part in parts if isinstance(parts, list) else [parts]:
            call, result = (
                isinstance(part, dict)
                and (part.get(f"function{w}") or part.get(f"function_{w.lower()}"))
                for w in ("Call", "Response")
            )
            if isinstance(call, dict):
                rest_of_call = {key: value for key, value in call.items() if key != "args"}
                calls.append({**rest_of_call, "arguments": call.get("args")})
            elif isinstance(result, dict):
                content = as_text(result.get("response"))
                made.append({"role": "tool", "name": result.get("name"), "content": content})
            elif isinstance(part, dict) and part.get("thought") is True:
                said.append({"type": "thinking", "thinking": part.get("text")})
            else:
                said.append(part)
        if said or calls or not parts:
            made.append({"role": "user", **rest, "content": said, "tool_calls": calls})
    return made
