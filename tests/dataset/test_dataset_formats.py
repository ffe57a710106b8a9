"""Raw rows of every format, and what they become."""

import json

import pytest

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats import FORMATS, NO_INPUT, detect, parse_row, parse_rows
from mlx_itune.kit.errors import UsageError


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
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 12345678901234567890}}}


@pytest.mark.parametrize(
    ("row", "format", "expected"),
    [
        ({"inputs": "u", "targets": "a", "task_name": "t"}, "inputs-targets", ASKED),
        ({"input": "u", "output": "a"}, "input-output", ASKED),
        ({"prompt": "u", "completion": "a"}, "prompt-completion", ASKED),
        ({"prompt": "u", "response": "a"}, "prompt-completion", ASKED),
        ({"question": "u", "answer": "a", "rationale": "r"}, "question-answer", ASKED),
        ({"question": "u", "response": "a"}, "question-answer", ASKED),
        ({"instruction": "u", "response": "a"}, "instruction-output", ASKED),
        ({"instruction": "u", "context": "", "response": "a", "category": "c"}, "alpaca", ASKED),
        (
            {"instruction": "u", "context": "c", "response": "a"},
            "alpaca",
            [("user", "u\n\nc"), ("assistant", "a")],
        ),
        # What a table has besides: null columns, and columns that another format would claim.
        (
            {"messages": None, "conversations": [], "question": "", "input": "u", "output": "a"}
            | {"conversations": None},
            "input-output",
            ASKED,
        ),
        ({"instruction": "u", "input": "", "output": "a", "text": "### ..."}, "alpaca", ASKED),
        (
            {"prompt": "p", "question": "u", "answer": "a"} | {"prompt": None},
            "question-answer",
            ASKED,
        ),
        (
            {"system": "s", "question": "u", "answer": "a"},
            "question-answer",
            [("system", "s"), *ASKED],
        ),
        (
            {
                "prompt": [{"role": "user", "content": "u"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            "prompt-completion",
            ASKED,
        ),
    ],
)
def test_formats_are_told_by_their_keys(row, format, expected):
    assert detect(row) == format
    assert turns(row) == expected
    assert turns(row, format=format) == expected


def test_replies_within_a_prompt_are_not_learned():
    row = {
        "prompt": chat("user", "assistant", "user")["messages"],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    assert [t.weight for t in parse_row(row, "f:1").turns] == [None, 0.0, None, None]


@pytest.mark.parametrize("spelling", [*NO_INPUT, None, " N/A ", "<NoInput>\n"])
def test_alpaca_rows_without_an_input(spelling):
    row = {"instruction": "u", "input": spelling, "output": "a"}
    assert turns(row) == ASKED and parse_row(row, "f:1").turns[0].input is None


def test_alpaca_keeps_what_its_generator_left():
    row = {"instruction": "i", "input": "x", "output": "o", "avg_similarity_score": 0.25}
    row["most_similar_instructions"] = {"a": 0.5}
    conversation = parse_row(row, "f:1")
    assert conversation.turns[0] == Turn("user", "i\n\nx", input="x")
    assert conversation.tags == {
        "avg_similarity_score": "0.25",
        "most_similar_instructions": '{"a":0.5}',
    }


def test_seed_tasks_give_a_conversation_for_each_instance():
    row = {
        "id": "seed_1",
        "instruction": "i",
        "instances": [{"input": "", "output": "a"}, {"input": "x", "output": "b"}],
        "is_classification": False,
    }
    one, two = parse_rows(row, "f:1")
    assert detect(row) == "seed-tasks"
    assert (one.turns[0].content, two.turns[0].content) == ("i", "i\n\nx")
    assert one.tags == two.tags == {"id": "seed_1", "is_classification": "false"}
    assert fault({"instruction": "i", "instances": []}).code == "no-turns"
    broken = fault({"instruction": "i", "instances": [{"output": "a"}, {"input": "x"}]})
    assert broken.code == "missing-key" and "instances[2]" in broken.message
    with pytest.raises(RowFault, match="holds 2 conversations"):
        parse_row(row, "f:1")


@pytest.mark.parametrize("human", ["human", "user", "User", "prompter"])
@pytest.mark.parametrize("gpt", ["gpt", "assistant", "bot", "chatgpt", "bing", "bard", "model"])
def test_role_aliases(human, gpt):
    row = chat("system", human, gpt, key="conversations")
    assert [role for role, _ in turns(row)] == ["system", "user", "assistant"]


def test_sharegpt_tools():
    row = {
        "conversations": [
            {"from": "human", "value": "u"},
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": 1}})},
            {"from": "observation", "value": "7"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([{"name": "f"}]),
    }
    conversation = parse_row(row, "f:1")
    assert [t.role for t in conversation.turns] == ["user", "assistant", "tool", "assistant"]
    assert conversation.turns[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert conversation.tools == ({"name": "f"},)
    row["conversations"][1]["value"] = "f(x)"
    assert fault(row).code == "json"


def test_openhermes_rows_as_they_are():
    row = {
        "custom_instruction": None, "topic": None, "idx": 7, "views": 1.0, "hash": [1, -2**62],
        "source": "airoboros2.2", "skip_prompt_formatting": False, "title": None, "id": None,
        "system_prompt": "s",
        "conversations": [
            {"from": "human", "value": "u", "weight": None},
            {"from": "gpt", "value": "a", "weight": 0},
            {"from": "human", "value": "v", "weight": None},
            {"from": "gpt", "value": "b", "weight": None},
        ],
    }  # fmt: skip
    assert detect(row) == "openhermes"
    conversation = parse_row(row, "f:1")
    assert [t.role for t in conversation.turns] == ["system", *["user", "assistant"] * 2]
    assert [t.weight for t in conversation.turns] == [None, None, 0, None, None]
    assert conversation.tags == {
        "idx": "7", "views": "1.0", "hash": "[1,-4611686018427387904]",
        "source": "airoboros2.2", "skip_prompt_formatting": "false",
    }  # fmt: skip


def test_a_system_column_fills_a_gap_and_never_replaces_a_turn():
    row = chat("system", "human", "gpt", key="conversations")
    for key in ("system", "system_prompt"):
        other = parse_row({**row, key: "another"}, "f:1")
        assert other.turns[0].content == "system 0" and other.tags == {key: "another"}
        assert parse_row({**row, key: " system 0\n"}, "f:1").tags == {}
        assert parse_row({**row, key: None}, "f:1").tags == {}


def test_openai_messages_of_every_age():
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": t} for t in "uv"]},
            {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "c1"}]},
            {"role": "tool", "content": None, "tool_call_id": "c1"},
            {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
            {"role": "function", "name": "g", "content": "x"},
            {"role": "assistant", "content": "a", "reasoning_content": "because"},
        ],
        "functions": [{"name": "g"}],
    }  # fmt: skip
    conversation = parse_row(row, "f:1")
    user, call, result, legacy, old, last = conversation.turns
    assert user.content == "uv" and call.tool_calls == ({**CALL, "id": "c1"},)
    assert result == Turn("tool", "", tool_call_id="c1")
    assert legacy.tool_calls[0]["function"] == {"name": "g", "arguments": {}}
    assert (old.role, old.name) == ("tool", "g")
    assert last.content == "<think>\nbecause\n</think>\n\na"
    assert conversation.tools == ({"type": "function", "function": {"name": "g"}},)


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        (chat("assistant", "user", "assistant"), "role-order", "data clean"),
        (chat("user", "user", "assistant"), "role-order", "join"),
        (chat("user", "narrator"), "unknown-role", "'narrator'"),
        (chat("user"), "no-reply", ""),
        ({"mesages": []}, "unknown-format", "'messages'"),
        ({"foo": 1}, "unknown-format", "--map"),
        ({}, "unknown-format", ""),
        ({"text": "no marks at all"}, "plain-text", "--format text"),
        ({"question": "q", "answer": 7}, "type", "--map"),
        ({"conversations": "[broken"}, "json", ""),
        ({"messages": "text"}, "type", ""),
        ({**chat("user", "assistant"), "tools": {"a": 1}}, "type", "'tools'"),
        ({**chat("user", "assistant"), "tools": ["f"]}, "type", "'tools'"),
        ({**chat("user", "assistant"), "system": 7}, "type", "'system'"),
        ({"instruction": "i", "input": ["x"], "output": "o"}, "type", "'input'"),
        ({"instruction": "i", "answer": "a", "response": "b"}, "missing-key", "'output'"),
    ],
)
def test_every_fault_has_a_code_and_mostly_a_way_out(row, code, said):
    found = fault(row)
    assert found.code == code and said in f"{found.message} {found.hint}"


@pytest.mark.parametrize("format", FORMATS)
def test_a_forced_format_refuses_what_is_not_its_own(format):
    assert fault({"foo": "x"}, format=format).code == "missing-key"
    assert fault({}, format=format).code == "missing-key"


def test_an_unknown_format_is_a_usage_error():
    with pytest.raises(UsageError, match="did you mean 'sharegpt'"):
        parse_rows({}, "f:1", format="share-gpt")
