"""Mutated lines of every format: no exception, and every line that is not blank counts once.

`MLX_ITUNE_FUZZ_LINES=1000000` runs as many (the suite runs 20,000).
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.conversation import Conversation, Fault, place_of
from mlx_itune.dataset.formats import FORMATS
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.sources import read_rows, said_bytes, to_row

LINES = int(os.environ.get("MLX_ITUNE_FUZZ_LINES", "20000"))
PER_FILE = 2000

MESSAGES = [
    {"role": "system", "content": "Be brief: answer in one line."},
    {"role": "user", "content": 'What is {"a": [1, 2]}? "Quoted", \\ and é 😀'},
    {"role": "assistant", "content": "An object.\n\n```json\n{}\n```", "weight": 1},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLS = [
    {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "tool_call_id": "c1"},
    {"role": "assistant", "content": None, "function_call": {"name": "g"}},
    {"role": "function", "name": "g", "content": ""},
    {"role": "assistant", "content": "a"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
SAID = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a", "weight": None}]
ROWS: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {"messages": CALLS, "tools": TOOLS, "metadata": {"source": "s", "n": 1}},
    {"id": "x_1", "conversations": SAID, "system": "s"},
    {"conversations": SAID * 2, "system_prompt": "s", "hash": [1, 2], "idx": 7, "views": None},
    {"instruction": "i", "input": "", "output": "o"},
    {"instruction": "i", "input": "<noinput>", "output": "o", "avg_similarity_score": 0.1},
    {"instruction": "i", "context": "c", "response": "o", "category": "k"},
    {"id": "t", "instruction": "i", "instances": [{"input": "", "output": "o"}] * 2},
    {"prompt": "p", "completion": "c"},
    {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]},
    {"instruction": "i", "output": "o"},
    {"input": "i", "output": "o"},
    {"question": "q?", "answer": "a #### 7", "rationale": "r"},
    {"inputs": "i", "targets": "t", "task_name": "n"},
    {"text": "### Instruction:\nu\n\n### Response:\na"},
    {"text": "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"},
    {"text": "no marks"},
    {"instruction": "i", "output": {"a": [1]}, "history": [["p", "q"]], "loss": 1},
    {"conversation": [{"input": "p", "output": "q", "system": "s"}], "Answer ": 4},
    {"prompt": MESSAGES[:2], "chosen": MESSAGES[2:], "rejected": "b"},
    {"messages": MESSAGES[1:] * 2, "loss_masks": [0, 1]},
    {
        "contents": [
            {"role": "user", "parts": [{"text": "u"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]},
            {"role": "model", "parts": {"text": "a"}},
        ]
    },
]
STRANGE = [
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"\\u0000", b"\\ud800",
    b"\\udc00", b"\\u003a", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"-0", b"null",
    b"true", b"7", b"[]", b"{}", b'""', b'"', b"\\", b":", b",", b"[", b"]", b"{", b"}", b"\n",
    b"\r", b"\r\n", b"\n\n", b"\t", b"\x0b", b"\x1f", b"\x7f", b"\xc2\x85", "\u2028".encode(),
    "\ufeff".encode(), b"[" * 300, b'{"a":' * 300, b"]" * 300, b"[" * 3000, b'{"a":1,"a":2}',
]  # fmt: skip
COLUMNS = {"instruction": "messages.1.content", "output": "instances.0.output"}
KEYS = "messages input text role content weight tools system kind".split()
VALUES = [None, True, 0, -1, 1e308, 10**30, "", " ", "\x00", [], {}, [[]], [None], {"a": None}, "x"]


def mutated(random_: random.Random) -> bytes:
    """A row of some format as a line, damaged in a few ways, or in none."""
    row = json.loads(json.dumps(random_.choice(ROWS)))
    for _ in range(random_.choice([0, 0, 0, 1, 2])):
        swap_a_type(row, random_)
    if random_.random() < 0.05:
        row = random_.choice([[row], "text", 7, None, [], [1, "x"]])
    separators = random_.choice([(", ", ": "), (",", ":"), (" , ", " : ")])
    text = json.dumps(row, ensure_ascii=random_.random() < 0.5, separators=separators)
    line = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(random_.choice([0, 0, 0, 1, 1, 2, 4])):
        damage(line, random_)
    return bytes(line)


def swap_a_type(row: Any, random_: random.Random) -> None:
    """Another value, key or place for something within the row."""
    spots: list[tuple[Any, Any]] = []
    inner = [row]
    for value in inner:
        keys = [*value] if isinstance(value, dict) else [*range(len(value))]
        spots += [(value, key) for key in keys]
        inner += [value[key] for key in keys if isinstance(value[key], (dict, list))]
    holder, key = random_.choice(spots or [([None], 0)])
    way = random_.randrange(4)
    if way == 0:
        holder[key] = copy.deepcopy(random_.choice(VALUES))
    elif way == 1:
        del holder[key]
    elif way == 2 and isinstance(holder, dict):
        holder[random_.choice(KEYS)] = holder.pop(key)
    else:
        holder[key] = [holder[key]]


def damage(line: bytearray, random_: random.Random) -> None:
    """One bit flipped; an end off; something strange within; a mark less; a piece of it again."""
    at = 0 if random_.random() < 0.2 else random_.randrange(len(line) + 1)
    way = random_.randrange(6)
    if way == 0 and line:
        line[random_.randrange(len(line))] ^= 1 << random_.randrange(8)
    elif way == 1:
        del line[slice(at, None) if random_.random() < 0.8 else slice(at)]
    elif way in (2, 3):
        line[at : at + (way - 2) * random_.randrange(4)] = random_.choice(STRANGE)
    elif way == 4:
        if spots := [n for n, byte in enumerate(line) if byte in b'"[]{},:\\']:
            del line[random_.choice(spots)]
    else:
        line[at:at] = line[at : at + random_.randrange(40)]


def check(path: Path, data: bytes, how: Reading) -> Counter[str]:
    """Read the lines; every one that is not blank is accepted or rejected, and only once."""
    path.write_bytes(data)
    outcomes: dict[int, str] = {}
    for row in read_rows(path, how=how):
        line = row.line if isinstance(row, Fault) else place_of(row.origin)[1]
        outcome = row.code if isinstance(row, Fault) else "accepted"
        assert outcome == "accepted" or "\n" not in str(row)
        assert line not in outcomes or outcome == outcomes[line] == "accepted", row
        outcomes[line] = outcome
    said = {n for n, line in enumerate(data.split(b"\n"), 1) if line.strip(b" \t\r\n")}
    assert outcomes.keys() == said, sorted(outcomes.keys() ^ said)[:5]
    return Counter(outcomes.values())


def fuzz(lines: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Run so many lines, some files in a forced format or with mapped columns."""
    random_ = random.Random(seed)
    total: Counter[str] = Counter()
    for number in range(0, lines, PER_FILE):
        count = min(PER_FILE, lines - number)
        data = random_.choice([b"\n", b"\n", b"\r\n"]).join(mutated(random_) for _ in range(count))
        options: dict[str, Any] = {}
        if random_.random() < 0.2:
            options["format"] = random_.choice(FORMATS)
        if random_.random() < 0.1:
            options["columns"] = COLUMNS
        name = random_.choice(["rows.jsonl", "rows.jsonl", "rows.ndjson", "rows.json", "rows"])
        total += check(folder / name, data, Reading(**options))
    return total


def test_mutated_lines_of_every_format(tmp_path: Path) -> None:
    found = fuzz(LINES, tmp_path)
    assert sum(found.values()) > LINES * 0.9
    if LINES >= 20_000:
        assert len(found) > 15 and found["accepted"] > LINES * 0.1, found


def document(random_: random.Random) -> tuple[str, bytearray]:
    """An array of rows, or an object around one."""
    rows = random_.choices(ROWS, k=random_.randint(1, 30))
    value = rows if random_.random() < 0.75 else {"data": rows, "n": 1}
    return ".json", bytearray(json.dumps(value, indent=random_.choice([None, 0, 2])).encode())


def table(random_: random.Random) -> tuple[str, bytearray]:
    """A table or a text."""
    suffix = random_.choice([".csv", ".tsv", ".txt", ".md"])
    header, cell = "question\tanswer\tsource\n", "a b?"
    if suffix == ".csv":
        header, cell = "question,answer,source\n", '"a, ""b""\n?"'
    rows = random_.choices([f"{cell},b,c\n", "a?\tb\tc\n"], k=30)
    return suffix, bytearray((header + "".join(rows)).encode())


@pytest.mark.parametrize("made", [document, table])
def test_mutated_documents_and_tables_raise_nothing(tmp_path: Path, made: Any) -> None:
    random_ = random.Random(1)
    for _ in range(300):
        suffix, data = made(random_)
        for _ in range(random_.randint(0, 5)):
            damage(data, random_)
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(data)
        assert all(isinstance(row, (Conversation, Fault)) for row in read_rows(path))


@pytest.mark.parametrize("is_ascii", [True, False])
def test_what_is_accepted_can_be_written_and_read_again(tmp_path: Path, is_ascii: bool) -> None:
    random_ = random.Random(3)
    path = tmp_path / "rows.jsonl"

    def said() -> list[Any]:
        rows = [row for row in read_rows(path) if isinstance(row, Conversation)]
        lines = "\n".join(json.dumps(to_row(row), ensure_ascii=is_ascii) for row in rows)
        path.write_text(lines, encoding="utf-8")
        return [(row.turns, row.tools, row.tags, said_bytes(row)) for row in rows]

    path.write_bytes(b"\n".join(mutated(random_) for _ in range(5000)))
    first = said()
    assert len(first) > 500 and said() == first
