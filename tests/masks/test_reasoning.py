"""Rows as people have them, met by the templates of reasoning models and of tools."""

from __future__ import annotations

import pytest

from masks.agreement import chat_tokenizer
from masks.families import FAMILIES
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.rendering.render import render
from mlx_itune.dataset.tokens.dialect import template_options
from mlx_itune.kit.errors import DataError, UsageError

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}  # fmt: skip


def read(row, origin):
    return parse_rows(row, origin, Reading())


def asked(**said):
    return {"messages": [{"role": "user", "content": "3+3?"}, {"role": "assistant", **said}]}


INLINE = asked(content="<think>\nThree twice.\n</think>\n\n6 it is")
FIELD = asked(content="6 it is", reasoning="Three twice.")
PARTS = asked(content=[{"type": "thinking", "thinking": "Three twice."}, {"text": "6 it is"}])
PLAIN = asked(content="6 it is")
CALL = {"name": "weather", "arguments": '{"city": "Köln"}'}
CALLS = {
    "messages": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [{"id": "call00000", "function": CALL}]},
        {"role": "tool", "tool_call_id": "call00000", "content": "18"},
        {"role": "assistant", "content": "18 C"},
    ],
    "tools": [TOOL],
}  # fmt: skip
_STRIPPED, _EOS = "Three twice.\n</think>\n\n6 it is", "<｜end▁of▁sentence｜>"
# What is learned of each.
LEARNED = {
    "deepseek_r1": {
        "inline": f"{_STRIPPED}{_EOS}", "plain": f"\n</think>\n\n6 it is{_EOS}",
        "calls": "\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        'weather\n```json\n{"city": "Köln"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' + _EOS,
    },
    "deepseek_v31_think": {"field": f"Three twice.</think>6 it is{_EOS}"},
    "deepseek_v31": {"plain": f"6 it is{_EOS}"},
    "nemotron3": {
        "inline": "Three twice.\n</think>\n6 it is<|im_end|>", "plain": "</think>6 it is<|im_end|>",
    },
    "qwq": {"parts": f"{_STRIPPED}<|im_end|>", "plain": "\n</think>\n\n6 it is<|im_end|>"},
    "qwen35": {"inline": f"{_STRIPPED}<|im_end|>"},
    "qwen35_off": {"inline": "6 it is<|im_end|>"},
    "exaone4": {"inline": f"{_STRIPPED}[|endofturn|]"},
    "exaone4_off": {"inline": "6 it is[|endofturn|]"},
    "gpt_oss": {
        "field": "<|channel|>analysis<|message|>Three twice.<|end|><|start|>assistant"
        "<|channel|>final<|message|>6 it is<|return|>",
        "calls": " to=functions.weather<|channel|>commentary json<|message|>"
        '{"city": "Köln"}<|call|>',
    },
    "gemma4": {
        "field": "<|channel>thought\nThree twice.\n<channel|>6 it is<turn|>",
        "calls": '<|tool_call>call:weather{city:<|"|>Köln<|"|>}<tool_call|><turn|>',
    },
    "gemma4_off": {"field": "6 it is<turn|>"},
    "lfm25": {"parts": "<think>Three twice.</think>6 it is<|im_end|>"},
    "ministral3": {"inline": "[THINK]Three twice.[/THINK]6 it is</s>"},
    "chatml": {"inline": "6 it is<|im_end|>", "plain": "6 it is<|im_end|>"},
}  # fmt: skip
ROWS = {"inline": INLINE, "field": FIELD, "parts": PARTS, "plain": PLAIN, "calls": CALLS}


@pytest.mark.parametrize(("name", "kind"), [(n, kind) for n in LEARNED for kind in LEARNED[n]])
def test_what_is_learned_of_a_row(name, kind):
    tokenizer = chat_tokenizer("gpt2", FAMILIES[name])
    (row,) = read(ROWS[kind], "f.jsonl:1")
    example = min(render(row, tokenizer), key=lambda example: example.spans[0])
    start, end = example.spans[0]
    assert tokenizer.decode(example.input_ids[start:end]) == LEARNED[name][kind]
    first = next(n for n, turn in enumerate(row.turns) if turn.role == "assistant")
    assert example.input_ids[:start].tolist() == tokenizer.prompt_ids(row.turns[:first], row.tools)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("chatml", ""), ("granite4", "")]
    + [(f"{name}_off", "enable_thinking") for name in ("qwen35", "exaone4", "gemma4")]
    + [("deepseek_v31", "enable_thinking")],
)
def test_reasoning_that_a_template_shows_nowhere_is_counted_with_what_would_show_it(name, remedy):
    tokenizer = chat_tokenizer("gpt2", FAMILIES[name])
    rows = [read(row, f"f.jsonl:{n}")[0] for n, row in enumerate((FIELD, INLINE, PLAIN), 1)]
    (told, *_) = prepare(rows, tokenizer).report.about_template(tokenizer)
    wanted = "reasoning: 2 rows have it, this template shows none"
    assert told == (f"{wanted}; --template-option {remedy}=true shows it" if remedy else wanted)


@pytest.mark.parametrize("name", ("qwq", "gpt_oss", "lfm25", "glm45"))
def test_nothing_is_told_of_what_is_shown(name):
    tokenizer = chat_tokenizer("gpt2", FAMILIES[name])
    rows = [read(row, "f.jsonl:1")[0] for row in (FIELD, CALLS)]
    assert not [*prepare(rows, tokenizer).report.about_template(tokenizer)]


def test_tools_are_refused_where_neither_they_nor_calls_are_shown_and_told_where_calls_are():
    tokenizer = chat_tokenizer("gpt2", FAMILIES["chatml"])
    row = Conversation((Turn("user", "a"), Turn("assistant", "b")), "f:1", (TOOL,))
    with pytest.raises(DataError, match="shows no tools"):
        render(row, tokenizer)
    tokenizer = chat_tokenizer("gpt2", FAMILIES["deepseek_r1"])
    (told,) = prepare(read(CALLS, "f:1"), tokenizer).report.about_template(tokenizer)
    assert told == "tools: 1 row has it, this template shows none"


def test_where_no_thought_can_stand_the_row_is_refused_with_the_reason():
    turns = (
        Turn("user", "a"),
        Turn("assistant", "", tool_calls=read(CALLS, "f:1")[0].turns[1].tool_calls),
        Turn("tool", "18"),
        Turn("assistant", "b", reasoning="hm"),
    )
    with pytest.raises(DataError, match="no place for the reasoning"):
        render(Conversation(turns, "f:1"), chat_tokenizer("gpt2", FAMILIES["deepseek_r1"]))


@pytest.mark.parametrize(
    ("name", "words"),
    [("qwen25", "You are Qwen"), ("ministral3", "First draft"), ("chatml", None), ("llama3", None),
     ("llama2", None), ("gemma2", None), ("gpt_oss", None), ("granite4", None)],
)  # fmt: skip
def test_words_that_a_template_puts_in_for_a_system_prompt(name, words):
    tokenizer = chat_tokenizer("gpt2", FAMILIES[name])
    found = tokenizer.dialect.own_words
    assert found.startswith(words) if words else found is None
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    rows = [Conversation(turns, "f:1"), Conversation((Turn("system", "s"), *turns), "f:2")]
    told = [*prepare(rows[: 1 + (name != "gemma2")], tokenizer).report.about_template(tokenizer)]
    assert ["1 row without" in line and words in line for line in told] == [True] * bool(words)


def test_a_shipped_template_has_the_options_as_its_defaults():
    family = FAMILIES["qwen35_off"]
    tokenizer = chat_tokenizer("gpt2", family)
    plain = tokenizer.with_options({})
    shipped = type(plain)(plain.hf, tokenizer.shipped(plain.template_text), eos_ids=plain.eos_ids)
    asked = [Turn("user", "a")]
    assert shipped.prompt_ids(asked) == tokenizer.prompt_ids(asked) != plain.prompt_ids(asked)
    thinking = shipped.with_options({"enable_thinking": True})
    assert thinking.prompt_ids(asked) == plain.prompt_ids(asked)


def test_an_answer_s_thought_and_its_words():
    apart = chat_tokenizer("gpt2", FAMILIES["qwq"]).dialect.apart
    assert apart("hm\n</think>\n\n6") == apart("<think>\nhm\n</think>\n\n6") == ("hm", "6")
    assert apart("\n</think>\n\n6") == (None, "6")
    assert apart("no end") == (None, "no end")


def test_options_of_a_template():
    given = ("a=true", "b=null", "c=1.5", 'd="x"', "e=low", "f=")
    assert template_options(given) == {
        "a": True,
        "b": None,
        "c": 1.5,
        "d": "x",
        "e": "low",
        "f": "",
    }
    for wrong in ("a", "=1", "a b=1"):
        with pytest.raises(UsageError):
            template_options([wrong])
    for name in ("messages", "enable_thinking"):
        with pytest.raises(UsageError, match=f"has no option '{name}'"):
            chat_tokenizer("gpt2", FAMILIES["qwq"]).with_options({name: True})
