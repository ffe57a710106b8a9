"""Marked and plain text, and columns that are mapped to fields."""

import contextlib
import json
import time

import pytest

from mlx_itune.dataset.conversation import Conversation, Turn, find_problem
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats import parse_row, parse_rows
from mlx_itune.dataset.sources import read_rows, to_row
from mlx_itune.kit.errors import DataError, UsageError


def turns(row, **options):
    return [(t.role, t.content) for t in parse_row(row, "f:1", **options).turns]


def fault(row, **options):
    with pytest.raises(RowFault) as caught:
        parse_rows(row, "f:1", **options)
    return caught.value


def chat(*roles, key="messages"):
    names = ("role", "content") if key == "messages" else ("from", "value")
    return {key: [{names[0]: role, names[1]: f"{role} {n}"} for n, role in enumerate(roles)]}


ASKED = [("user", "u"), ("assistant", "a")]

TEXTS = {
    "chatml": (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n u \n<|im_end|>\n"
        "<|im_start|>assistant\na\n\n<|im_end|>\n",
        [("system", "s"), ("user", " u \n"), ("assistant", "a\n\n")],
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] v [/INST] b </s>",
        [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")],
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>",
        ASKED,
    ),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nu\n\n### Input:\nx\n\n### Response:\n  a\n\nb",
        [("user", "u\n\nx"), ("assistant", "  a\n\nb")],
    ),
    "guanaco": (
        "### Human: u### Assistant: a### Human: v### Assistant: b",
        [*ASKED, ("user", "v"), ("assistant", "b")],
    ),
    "vicuna": (
        "A chat. USER: u ASSISTANT: a</s>USER: v ASSISTANT: b</s>",
        [("system", "A chat."), *ASKED, ("user", "v"), ("assistant", "b")],
    ),
    "anthropic": ("\n\nHuman: u\n\nAssistant: a", ASKED),
    "user": ("User: u\nAssistant: a\nmore", [("user", "u"), ("assistant", "a\nmore")]),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_marked_text_is_parted_exactly(name):
    text, expected = TEXTS[name]
    assert turns({"text": text}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nu<|im_end|>\nlost words\n<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>user\nu<|im_end|>",
        "### Instruction:\nu\n\n### Instruction:\nv",
        "[INST] u",
        "Assistant: a",
    ],
)
def test_marks_that_make_no_dialogue_are_plain_text(text):
    assert fault({"text": text}).code in ("plain-text", "role-order", "no-reply")


def test_plain_text_can_be_learned_whole():
    conversation = parse_row({"text": "once upon a time", "source": "s"}, "f:1", format="text")
    assert conversation.turns == (Turn("assistant", "once upon a time"),)
    assert conversation.tags == {"kind": "text", "source": "s"}
    assert parse_row(to_row(conversation), "f:1") == conversation
    assert find_problem(conversation.turns) is not None
    with pytest.raises(DataError):
        Conversation(conversation.turns, "f:1")


# --map


def test_columns_are_mapped_and_the_rest_become_tags():
    row = {"Frage": "u", "A": {"b": [{"c": 42}]}, "input": "not this", "messages": [], "n": 1}
    conversation = parse_row(row, "f:1", columns={"instruction": "Frage", "output": "A.b.0.c"})
    assert [t.content for t in conversation.turns] == ["u", "42"]
    assert conversation.tags["input"] == "not this" and conversation.tags["n"] == "1"
    part = parse_row({"instruction": "u", "antwort": "a"}, "f:1", columns={"output": "antwort"})
    assert [t.content for t in part.turns] == ["u", "a"]
    tagged = parse_row({**chat("user", "assistant"), "ds": "x"}, "f:1", columns={"source": "ds"})
    assert tagged.tags == {"source": "x"}
    listed = {"m": json.dumps(chat("user", "assistant")["messages"])}
    assert len(turns(listed, columns={"messages": "m"})) == 2
    assert turns({"t": "x"}, columns={"text": "t"}, format="text") == [("assistant", "x")]


@pytest.mark.parametrize(
    ("row", "columns", "code", "said"),
    [
        ({"question": "q"}, {"instruction": "qestion"}, "missing-column", "'question'"),
        ({"a": {"deep": 1}}, {"instruction": "a.depe"}, "missing-column", "'a.deep'"),
        ({"q": None, "a": "a"}, {"question": "q", "answer": "a"}, "type", "null"),
        ({"q": " ", "a": "a"}, {"question": "q", "answer": "a"}, "empty", ""),
        ({"q": ["x"], "a": "a"}, {"question": "q", "answer": "a"}, "type", "'q'"),
    ],
)
def test_a_column_that_is_missing_or_wrong_is_named(row, columns, code, said):
    found = fault(row, columns=columns)
    assert found.code == code and said in f"{found.message} {found.hint}"


@pytest.mark.parametrize(
    "columns", [{}, {"instuction": "q"}, {"outputs": "q"}, {"": "q"}, {"a": ""}]
)
def test_a_mapping_that_cannot_be_meant_is_a_usage_error(tmp_path, columns):
    with pytest.raises(UsageError):
        list(read_rows(tmp_path / "none", columns=columns))


@pytest.mark.parametrize(
    "mark",
    [
        " ", "\n", "</s>", "<s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_start|>user\n",
        "### Input:\n", "### Instruction:\n", "USER: ", "Human: ", "<|im_end|>", "<<SYS>>",
    ],
)  # fmt: skip
def test_no_text_takes_long(mark):
    for text in (
        mark * 60_000,
        "x" + mark * 60_000 + "x",
        f"Human: a\nAssistant:{mark * 30_000}x",
    ):
        began = time.process_time()
        with contextlib.suppress(RowFault):
            parse_rows({"text": text}, "f:1")
        assert time.process_time() - began < 5
