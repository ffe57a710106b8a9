"""Raw rows of every format, marked texts and mapped columns, and what they become."""

import contextlib
import json
import time

import pytest

from mlx_itune.dataset.conversation import Conversation, RowFault, Turn, find_problem
from mlx_itune.dataset.formats import FORMATS, NO_INPUT, parse_rows
from mlx_itune.dataset.formats.chat import THOUGHTS
from mlx_itune.dataset.how import Reading, parse_map
from mlx_itune.dataset.sources import content_key, to_row
from mlx_itune.kit.errors import DataError, UsageError


def row_of(row, **options):
    (conversation,) = parse_rows(row, "f:1", Reading(**options))
    return conversation


def turns(row, **options):
    return [(t.role, t.content) for t in row_of(row, **options).turns]


def fault(row, **options):
    with pytest.raises(RowFault) as caught:
        parse_rows(row, "f:1", Reading(**options))
    return caught.value


def chat(*roles, key="messages"):
    names = ("role", "content") if key == "messages" else ("from", "value")
    return {key: [{names[0]: role, names[1]: f"{role} {n}"} for n, role in enumerate(roles)]}


ASKED = [("user", "u"), ("assistant", "a")]
REPLY = [{"role": "assistant", "content": "a"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 12345678901234567890}}}


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("inputs-targets", {"inputs": "u", "targets": "a", "task_name": "t"}),
        ("input-output", {"input": "u", "output": "a"}),
        ("prompt-completion", {"prompt": "u", "completion": "a"}),
        ("prompt-completion", {"prompt": [{"role": "user", "content": "u"}], "completion": REPLY}),
        ("question-answer", {"question": "u", "response": "a", "rationale": "r"}),
        ("instruction-output", {"instruction": "u", "response": "a"}),
        ("alpaca", {"instruction": "u", "context": "", "response": "a", "category": "c"}),
        # What a table has besides: null columns, and columns that another format would claim.
        ("input-output", {"messages": None, "question": "", "input": "u", "output": "a"}),
        ("alpaca", {"instruction": "u", "input": "", "output": "a", "text": "### ..."}),
        ("question-answer", {"prompt": None, "question": "u", "answer": "a"}),
    ],
)
def test_formats_are_told_by_their_keys(format, row):
    assert turns(row) == turns(row, format=format) == ASKED
    assert turns({**row, "system": "s"}) == [("system", "s"), *ASKED]
    # Replies within a prompt are not learned.
    row = {"prompt": chat("user", "assistant", "user")["messages"], "completion": REPLY}
    assert [t.weight for t in row_of(row).turns] == [None, 0.0, None, None]


def test_alpaca_rows():
    for spelling in (*NO_INPUT, None, " N/A ", "<NoInput>\n"):
        row = {"instruction": "u", "input": spelling, "output": "a"}
        assert turns(row) == ASKED and row_of(row).turns[0].input is None
    row = {"instruction": "i", "input": "x", "output": "o", "avg_similarity_score": 0.25}
    conversation = row_of({**row, "most_similar_instructions": {"a": 0.5}})
    assert conversation.turns[0] == Turn("user", "i\n\nx", input="x")
    assert turns({"instruction": "i", "context": "c", "response": "o"})[0] == ("user", "i\n\nc")
    similar = {"avg_similarity_score": "0.25", "most_similar_instructions": '{"a":0.5}'}
    assert conversation.tags == similar


def test_seed_tasks_give_a_conversation_for_each_instance():
    both = [{"input": "", "output": "a"}, {"input": "x", "output": "b"}]
    one, two = parse_rows(
        {"id": "1", "instruction": "i", "instances": both, "is": False}, "f:1", Reading()
    )
    assert (one.turns[0].content, two.turns[0].content) == ("i", "i\n\nx")
    assert one.tags == two.tags == {"id": "1", "is": "false"}
    assert fault({"instruction": "i", "instances": []}).code == "no-turns"
    broken = fault({"instruction": "i", "instances": [{"output": "a"}, {"input": "x"}]})
    assert broken.code == "missing-key" and "instances[2]" in broken.message


def test_sharegpt_roles_and_tools():
    for human in ("human", "user", "User", "prompter"):
        for gpt in ("gpt", "assistant", "bot", "chatgpt", "bing", "bard", "model"):
            row = chat("system", human, gpt, key="conversations")
            assert [role for role, _ in turns(row)] == ["system", "user", "assistant"]
    row = chat("human", "function_call", "observation", "gpt", key="conversations")
    row["conversations"][1]["value"] = json.dumps({"name": "f", "arguments": {"x": 1}})
    conversation = row_of({**row, "tools": json.dumps([{"name": "f"}])})
    assert [t.role for t in conversation.turns] == ["user", "assistant", "tool", "assistant"]
    assert conversation.turns[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert conversation.tools == ({"name": "f"},)
    row["conversations"][1]["value"] = "f(x)"
    assert fault(row).code == "json"


def test_openhermes_rows_as_they_are():
    row = chat(*["human", "gpt"] * 2, key="conversations")
    for turn, weight in zip(row["conversations"], (None, 0, None, None), strict=True):
        turn["weight"] = weight
    row |= {
        "custom_instruction": None, "idx": 7, "views": 1.0, "hash": [1, -2**62], "title": None,
        "source": "airoboros2.2", "skip_prompt_formatting": False, "system_prompt": "s",
    }  # fmt: skip
    conversation = row_of(row)
    assert [t.role for t in conversation.turns] == ["system", *["user", "assistant"] * 2]
    assert [t.weight for t in conversation.turns] == [None, None, 0, None, None]
    assert conversation.tags == {
        "idx": "7", "views": "1.0", "hash": "[1,-4611686018427387904]",
        "source": "airoboros2.2", "skip_prompt_formatting": "false",
    }  # fmt: skip


def test_a_system_column_fills_a_gap_and_never_replaces_a_turn():
    row = chat("system", "human", "gpt", key="conversations")
    for key in ("system", "system_prompt"):
        other = row_of({**row, key: "another"})
        assert other.turns[0].content == "system 0" and other.tags == {key: "another"}
        assert row_of({**row, key: " system 0\n"}).tags == row_of({**row, key: None}).tags == {}


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
    }
    conversation = row_of(row)
    user, call, result, legacy, old, last = conversation.turns
    assert user.content == "uv" and call.tool_calls == ({**CALL, "id": "c1"},)
    assert result == Turn("tool", "", tool_call_id="c1")
    assert legacy.tool_calls[0]["function"] == {"name": "g", "arguments": {}}
    assert (old.role, old.name) == ("tool", "g")
    assert (last.content, last.reasoning) == ("a", "because")
    assert conversation.tools == ({"type": "function", "function": {"name": "g"}},)


def replied(**message):
    return {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", **message}]}


THOUGHT_PART = {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}


@pytest.mark.parametrize(
    "row",
    [
        *(replied(content="a", **{key: "t"}) for key in THOUGHTS),
        replied(content="a", reasoning="t", reasoning_content=" t\n", thinking=None),
        replied(content=[{"type": "reasoning", "text": "t"}, {"type": "text", "text": "a"}]),
        replied(content=[THOUGHT_PART, {"type": "text", "text": "a"}]),
        *(replied(content=text.format("t", "a"))
          for text in ("<think>\n{}\n</think>\n\n{}", "<think>{}</think>{}", "{}\n</think>\n{}",
                       "[THINK]{}[/THINK]{}")),
        {"messages": [*chat("user")["messages"], {"role": "reasoning", "content": "t"}, *REPLY]},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "thinking", "value": "t"},
                           {"from": "gpt", "value": "a"}]},
        {"question": "u", "reasoning": "t", "answer": "a"},
        {"instruction": "u", "output": "<think>\nt\n</think>\n\na", "reasoning": "on"},
    ],
)  # fmt: skip
def test_reasoning_is_one_field_of_a_turn_whatever_its_name_and_place(row):
    conversation = row_of(row)
    *_, last = conversation.turns
    assert (last.content, last.reasoning) == ("a", "t")
    again = row_of(to_row(conversation))
    assert again.turns == conversation.turns and again.tags == conversation.tags
    assert content_key(again) != content_key(row_of(replied(content="a")))


def test_what_is_no_reasoning_stays_and_what_nobody_can_have_thought_is_refused():
    for text in ("write </think> to end it", "<think>\n\n</think>\n\na", "<think> not closed"):
        last = row_of(replied(content=text)).turns[-1]
        assert last.reasoning is None and last.content in (text, "a")
    assert row_of({"question": "u", "answer": "a", "thinking": "on"}).tags == {"thinking": "on"}
    columns = {"question": "u", "answer": "a", "reasoning": "why"}
    row = {"u": "x", "why": "t", "a": "y"}
    assert row_of(row, columns=columns).turns[-1] == Turn("assistant", "y", reasoning="t")
    asked = {"role": "user", "content": "u", "reasoning": "t"}
    assert fault({"messages": [asked, *REPLY]}).code == "reasoning"
    assert fault(chat("user", "assistant", "thinking")).code == "reasoning"
    assert fault(replied(content="a", reasoning="t", thinking="other")).code == "reasoning"
    assert fault(replied(content="a", reasoning={"t": 1})).code == "type"


QA = {"question": "question", "answer": "answer"}
MAPS = "--map instruction={} --map output={}".format


@pytest.mark.parametrize(
    ("row", "columns", "code", "said"),
    [
        (chat("assistant", "user", "assistant"), None, "role-order", "data clean"),
        (chat("user", "user", "assistant"), None, "role-order", "join"),
        (chat("user", "assistant", "system", "assistant"), None, "role-order", "before a question"),
        (chat("user", "narrator"), None, "unknown-role", "'narrator'"),
        (chat("user", "asistant"), None, "unknown-role", "did you mean assistant"),
        (chat("user"), None, "no-reply", ""),
        ({}, None, "unknown-format", ""),
        ({"mesages": []}, None, "unknown-format", "'messages'"),
        ({"foo": 1}, None, "unknown-format", MAPS("COLUMN", "foo")),
        ({"Question": "q", "Reply": "a"}, None, "missing-key", MAPS("question", "Reply")),
        ({"a b": "q", "c": "a", "d": 1}, None, "unknown-format", MAPS("c", "d")),
        ({"instruction": "i", "answer": "a", "response": "b"}, None, "missing-key", "'output'"),
        ({"text": "no marks at all"}, None, "plain-text", "--format text learns it whole"),
        ({"text": "<start_of_turn>user\nhi<end_of_turn>"}, None, "plain-text", "give messages"),
        ({"messages": "text"}, None, "type", ""),
        ({"conversations": "[broken"}, None, "json", ""),
        ({**chat("user", "assistant"), "tools": {"a": 1}}, None, "type", "'tools'"),
        ({**chat("user", "assistant"), "tools": ["f"]}, None, "type", "'tools'"),
        ({"question": "q"}, {"instruction": "qestion"}, "missing-column", "mean question?"),
        ({"a": {"deep": 1}}, {"instruction": "a.depe"}, "missing-column", "mean a.deep?"),
        ({"question": None, "answer": "a"}, QA, "type", "null"),
        ({"question": " ", "answer": "a"}, QA, "empty", ""),
    ],
)
def test_every_fault_has_a_code_and_mostly_a_way_out(row, columns, code, said):
    found = fault(row, columns=columns)
    assert found.code == code and said in f"{found.message} {found.hint}"


def test_a_forced_format_refuses_what_is_not_its_own():
    for format in FORMATS:
        assert fault({"foo": "x"}, format=format).code == "missing-key"
    with pytest.raises(UsageError, match="did you mean sharegpt"):
        parse_rows({}, "f:1", Reading(format="share-gpt"))


AGAIN = [*ASKED, ("user", "v"), ("assistant", "b")]
TEXTS = {
    "chatml": (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n u \n<|im_end|>\n"
        "<|im_start|>assistant\na\n\n<|im_end|>\n",
        [("system", "s"), ("user", " u \n"), ("assistant", "a\n\n")],
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] v [/INST] b </s>",
        [("system", "s"), *AGAIN],
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
    "guanaco": ("### Human: u### Assistant: a### Human: v### Assistant: b", AGAIN),
    "vicuna": (
        "A chat. USER: u ASSISTANT: a</s>USER: v ASSISTANT: b</s>", [("system", "A chat."), *AGAIN],
    ),
    "anthropic": ("\n\nHuman: u\n\nAssistant: a", ASKED),
    "user": ("User: u\nAssistant: a\nmore", [("user", "u"), ("assistant", "a\nmore")]),
}  # fmt: skip


def test_marked_text_is_parted_exactly():
    assert {name: turns({"text": text}) for name, (text, _) in TEXTS.items()} == {
        name: expected for name, (_, expected) in TEXTS.items()
    }
    for text in (
        "<|im_start|>user\nu<|im_end|>\nlost words\n<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>user\nu<|im_end|>",
        "### Instruction:\nu\n\n### Instruction:\nv",
        "[INST] u",
        "Assistant: a",
    ):
        assert fault({"text": text}).code in ("plain-text", "role-order", "no-reply")


def test_plain_text_can_be_learned_whole():
    conversation = row_of({"text": "once upon a time", "source": "s"}, format="text")
    assert conversation.turns == (Turn("assistant", "once upon a time"),)
    assert conversation.tags == {"kind": "text", "source": "s"}
    assert find_problem(conversation.turns) is not None
    with pytest.raises(DataError, match=r"f:1: turn 1 \('assistant'\) cannot be the first turn"):
        Conversation(conversation.turns, "f:1")


def test_tags_of_any_name_survive_writing():
    names = "source text messages system metadata input question kind tools 1 é".split()
    asked = Turn("user", "i\n\nx", name="ann", input="x"), Turn("assistant", "a", 0.5)
    conversation = Conversation(asked, "f:1", (CALL,), {name: f"a {name}" for name in names})
    assert row_of(to_row(conversation)) == conversation


def test_columns_are_mapped_and_the_rest_become_tags():
    row = {"Frage": "u", "A": {"b": [{"c": 42}]}, "input": "not this", "messages": [], "n": 1}
    conversation = row_of(row, columns={"instruction": "Frage", "output": "A.b.0.c"})
    assert [t.content for t in conversation.turns] == ["u", "42"]
    assert conversation.tags["input"] == "not this" and conversation.tags["n"] == "1"
    assert turns({"instruction": "u", "antwort": "a"}, columns={"output": "antwort"}) == ASKED
    tagged = row_of({**chat("user", "assistant"), "ds": "x"}, columns={"source": "ds"})
    assert tagged.tags == {"source": "x"}
    listed = {"m": json.dumps(chat("user", "assistant")["messages"])}
    assert len(turns(listed, columns={"messages": "m"})) == 2
    assert turns({"t": "x"}, columns={"text": "t"}, format="text") == [("assistant", "x")]


def test_a_mapping_that_cannot_be_meant_is_a_usage_error():
    for texts in (["instuction=q"], ["outputs=q"], ["=q"], ["a="], ["a"], ["a=b", "a=c"]):
        with pytest.raises(UsageError):
            parse_map(texts)


def test_no_text_takes_long():
    marks = [" ", "\n", "</s>", "<s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_start|>user\n"]
    marks += ["### Input:\n", "### Instruction:\n", "USER: ", "Human: ", "<|im_end|>", "<<SYS>>"]
    for mark in marks:
        many = mark * 10_000
        for text in (many, f"x{many}x", f"Human: a\nAssistant:{many}x"):
            began = time.process_time()
            with contextlib.suppress(RowFault):
                parse_rows({"text": text}, "f:1", Reading())
            assert time.process_time() - began < 2


def test_what_is_said_has_its_keys():
    one = row_of({"instruction": "i", "input": "x", "output": "o"})
    assert content_key(one) == 4138581881464177436
    assert content_key(row_of({"question": "q", "answer": "a"})) == 15299395578411588967
