"""Rows as people have them: masks of turns, formats of other tools, and nothing lost in silence."""

import json

import pytest

from mlx_itune.dataset.conversation import RowFault, Turn
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.how import Reading, parse_map, parse_roles

SYSTEM = {"role": "system", "content": "s"}
U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
S = ("system", "s")
ASKED = [("user", "u"), ("assistant", "a")]
EARLIER = [("user", "p"), ("assistant", "q"), *ASKED]


def read(row, **options):
    how = Reading(**options)
    (conversation,) = parse_rows(row, "f:1", how)
    return conversation, how.told


def turns(row, **options):
    return [(turn.role, turn.content) for turn in read(row, **options)[0].turns]


@pytest.mark.parametrize("flag", ["weight", "train", "training", "trainable", "loss", "loss_mask"])
def test_flags_of_turns_say_whether_they_are_learned(flag):
    for no, yes in (
        (False, True),
        (0, 1),
        (0.0, 1.0),
        ("0", "1"),
        ("false", " True"),
        ("no", "yes"),
    ):
        row = {"messages": [U, {**A, flag: no}, U, {**A, flag: yes}, U, {**A, flag: None}]}
        conversation, told = read(row)
        assert [t.weight for t in conversation.turns][1::2] == [0, 1, None]
        assert not told.lost
        said = {"from": "gpt", "value": "a", flag: no}
        assert (
            read({"conversations": [{"from": "human", "value": "u"}, said]})[0].turns[1].weight == 0
        )


def test_lists_of_flags_and_flags_that_say_nothing_clear():
    messages = [U, A, U, A]
    for masks in ([0, 0, 0, 1], [0, 1]):
        conversation, told = read({"messages": messages, "loss_masks": masks})
        assert [t.weight for t in conversation.turns][1::2] == [0, 1] and not told.lost
    for row in (
        {"messages": messages, "loss_masks": [1]},
        {"messages": [U, {**A, "train": True, "weight": 0}]},
    ):
        with pytest.raises(RowFault) as caught:
            read(row)
        assert caught.value.code == "weight"
    _, told = read({"messages": [{**U, "train": 1}, {**A, "loss": 2.31, "train_detail": [0]}]})
    assert sorted(told.lost) == [
        "'loss' of turns: neither true nor false",
        "'train' of user turns: only replies are learned",
        "'train_detail' of assistant turns",
    ]
    assert "'train_detail' of assistant turns (1 row; if it is to say" in next(told.lines())
    rounds = [
        {"input": "u", "output": "a", "output_with_loss": False},
        {"q": "u", "a": "a", "loss": 1},
    ]
    assert [t.weight for t in read({"conversation": rounds})[0].turns] == [None, 0, None, 1]


GEMINI = {
    "systemInstruction": {"parts": [{"text": "s"}]},
    "contents": [
        {"role": "user", "parts": [{"text": "u"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]},
        {"role": "function", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
        {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]},
    ],
    "tools": [{"functionDeclarations": [{"name": "f"}]}],
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "u", "output": "a", "history": [["p", "q"]]}, EARLIER),
        ({"instruction": "u", "output": "a", "history": '[["p", "q"]]', "input": ""}, EARLIER),
        ({"instruction": "u", "generation": "a"}, ASKED),
        ({"conversation": [{"input": "p", "output": "q"}, {"input": "u", "output": "a"}]}, EARLIER),
        ({"conversation": [{"human": "u", "assistant": "a", "system": "s"}]}, [S, *ASKED]),
        ({"conversation": ["p", "q", "u", "a"]}, EARLIER),
        ({"question": "u", "answers": {"text": ["a"], "answer_start": [7]}}, ASKED),
        ({"question": "u", "context": "c", "answers": ["a", "a"]}, [("user", "u\n\nc"), ASKED[1]]),
        ({"query": "u", "response": "a", "history": [["p", "q"]]}, EARLIER),
        ({"messages": [{**U, "content": {"text": "u"}}, A]}, ASKED),
        ({"prompt": "u", "chosen": "a", "rejected": "b"}, ASKED),
        ({"question": "u", "chosen": "a", "rejected": "b", "system": "s"}, [S, *ASKED]),
        ({"prompt": "u", "chosen": [U, A], "rejected": [U, U]}, ASKED),
        ({"prompt": [U], "chosen": [A], "rejected": [U]}, ASKED),
        ({"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u"}, ASKED),
        ({"conversations": [{"from": "human", "value": "u"}], "chosen": A, "rejected": U}, ASKED),
        ({"Question ": "u", "ANSWER": "a"}, ASKED),
        ({"Messages": [U, A]}, ASKED),
        ({"instruction": "u", "output": 4}, [ASKED[0], ("assistant", "4")]),
        ({"instruction": "u", "input": None, "output": 6.0}, [ASKED[0], ("assistant", "6")]),
        ({"input": "u", "output": {"n": "é"}}, [ASKED[0], ("assistant", '{"n":"é"}')]),
        ({"messages": [U, {**A, "content": {"n": "é"}}]}, [ASKED[0], ("assistant", '{"n":"é"}')]),
        ({"messages": [U, {**A, "content": {"type": "text", "text": "a"}}]}, ASKED),
        ({"messages": [U, A, SYSTEM, U, A]}, [*ASKED, S, *ASKED]),
    ],
)  # fmt: skip
def test_rows_of_other_tools(row, expected):
    assert turns(row) == expected


def test_gemini_and_calls_written_as_python_does():
    conversation, told = read(GEMINI)
    assert [t.role for t in conversation.turns] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert conversation.turns[2].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert conversation.turns[3] == Turn("tool", '{"y":2}', name="f")
    assert conversation.turns[-1].content == "ab" and not told.lost
    assert conversation.tools == ({"type": "function", "function": {"name": "f"}},)
    row = {
        "messages": [
            U,
            {**A, "content": "", "function_calls": 'get(city="Rome", days=[1, 2])\nf()'},
            {"role": "environment", "content": "18"},
            A,
        ]
    }
    with pytest.raises(RowFault) as caught:
        read(row)
    assert "--roles environment=tool" in caught.value.hint
    calls = read(row, roles=parse_roles(["environment=tool"]))[0].turns[1].tool_calls
    assert [call["function"] for call in calls] == [
        {"name": "get", "arguments": {"city": "Rome", "days": [1, 2]}},
        {"name": "f", "arguments": {}},
    ]


MARKED = {
    "gemma": "<bos><start_of_turn>user\nu<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n",
    "phi-3": "<|user|>\nu<|end|>\n<|assistant|>\na<|end|>\n<|endoftext|>",
    "phi-4": "<|im_start|>user<|im_sep|>u<|im_end|><|im_start|>assistant<|im_sep|>a<|im_end|>",
    "llama-4": "<|begin_of_text|><|header_start|>user<|header_end|>\n\nu<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\na<|eot|>",
    "granite": "<|start_of_role|>user<|end_of_role|>u<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>a<|end_of_text|>\n",
    "deepseek": "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜>a<｜end▁of▁sentence｜>",
    "command-r": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>u<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>a<|END_OF_TURN_TOKEN|>",
}


def test_spellings_of_no_input_are_counted_and_can_be_others():
    row = {"instruction": "u", "input": " N/A", "output": "a"}
    found, told = read(row)
    assert found.turns[0].content == "u" and told.taken == {"input 'n/a' as no input": 1}
    other, told = read(row, no_input=frozenset({"keine"}))
    assert other.turns[0].content == "u\n\n N/A" and not told.taken
    assert turns({**row, "input": "Keine"}, no_input=frozenset({"keine"})) == ASKED


@pytest.mark.parametrize("text", MARKED.values(), ids=MARKED)
def test_text_rendered_by_a_template_has_turns(text):
    assert turns({"text": text}) == ASKED
    with pytest.raises(RowFault) as caught:
        read({"text": text.replace("u", "", 1)[: len(text) // 2]})
    assert "--format" not in caught.value.hint


def test_maps_and_roles_in_both_spellings_and_several_at_once():
    for texts in (
        ["instruction=Ticket text", "output=Label (JSON)"],
        ["Ticket text=instruction", "Label (JSON)=output"],
        ["instruction=Ticket text,output=Label (JSON)"],
        ["Ticket text=instruction, output=Label (JSON)"],
    ):
        assert parse_map(texts) == {"instruction": "Ticket text", "output": "Label (JSON)"}
    assert parse_map(["output=a, b"]) == {"output": "a, b"}
    assert parse_map(["source=ds"]) == {"source": "ds"}
    assert parse_roles(["Environment=tool,user=narrator"]) == {
        "environment": "tool",
        "narrator": "user",
    }
    row = {"ticket TEXT": "u", " Label (json)": {"a": 1}}
    found = turns(row, columns={"instruction": "Ticket text", "output": "Label (JSON)"})
    assert found == [("user", "u"), ("assistant", '{"a":1}')]


STRANGE = {"x_note": "left over", "nested": {"deep": "buried"}, "n": None}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{**U, **STRANGE}, {**A, **STRANGE}], **STRANGE},
        {"messages": [U, {**A, "content": [{"type": "text", "text": "a", **STRANGE}]}]},
        {"messages": [U, A, {"role": "user", "content": "never answered"}]},
        {"conversations": [{"from": "human", "value": "u", "name": "ann"}, A],
         "metadata": {"license": "mit", "n": {"k": "v"}}, "system": "s"},
        {"conversation": [{"input": "u", "output": "a", **STRANGE}], "system_prompt": "s"},
        {**GEMINI, **STRANGE},
        {"contents": [{"role": "user", "parts": [{"text": "u", **STRANGE}], **STRANGE},
                      {"role": "model", "parts": ["a"]}]},
        {"instruction": "i", "input": "n/a", "output": "o", "history": [["p", "q"]], **STRANGE},
        {"instruction": "i", "instances": [{"input": "x", "output": "o", **STRANGE}], **STRANGE},
        {"question": "u", "answers": {"text": ["a", "another"], "answer_start": [1]}, "title": "t"},
        {"question": "u", "context": "c", "answer": ["a", "b"], **STRANGE},
        {"prompt": "u", "chosen": "a", "rejected": "worse", "score": "0.5"},
        {"chosen": [U, A], "rejected": [U, {**A, "content": "worse"}], "prompt": "another"},
        {"prompt": [U], "completion": [{**A, **STRANGE}]},
        {"inputs": "u", "targets": "a", "task": "t"},
        {"input": "u", "output": {"k": ["v", {"w": "z"}]}, "response": "second"},
        {"text": MARKED["gemma"], "category": "c"},
        {"messages": [U, A], "system": "s", "system_prompt": "another s"},
        {"Prompt": "u", "Completion": "a", "Context": "c", "completion": "a"},
    ],
    ids=lambda row: "+".join(row),
)  # fmt: skip
def test_every_string_of_a_row_is_learned_or_named(row):
    how = Reading()
    (conversation,) = parse_rows(row, "f:1", how)
    turns, tools = conversation.turns, conversation.tools
    said = json.dumps([[t.content, t.reasoning, t.tool_calls, t.name] for t in turns])
    said += json.dumps(tools)
    # The names that were told, in whatever words.
    named = " ".join((*how.told.lost, *how.told.tags, *how.told.taken)).lower()

    def missing(value, names):
        if isinstance(value, dict):
            return [m for key, item in value.items() for m in missing(item, (*names, key))]
        if isinstance(value, list):
            return [m for item in value for m in missing(item, names)]
        is_said = not isinstance(value, str) or json.dumps(value)[1:-1] in said
        is_mark = isinstance(value, str) and value in (
            "user",
            "assistant",
            "human",
            "gpt",
            "text",
            "model",
            "function",
        )
        is_named = any(
            f"'{name.lower()}'" in named or name.lower() in named.split() for name in names
        )
        return (
            [] if is_said or is_mark or is_named or value == MARKED["gemma"] else [(names, value)]
        )

    assert missing(row, ()) == []
    assert sum(how.told.lost.values()) == len(how.told.lost)
