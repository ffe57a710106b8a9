"""The text of an answer: whole characters, up to a stop; words, reasoning and calls told apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from masks.agreement import chat_tokenizer
from masks.families import FAMILIES

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
from mlx_itune.dataset.tokens.calls import tools_for, written
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.answer_forms import form_of
from mlx_itune.inference.openai_request import Desk, Refusal, Served
from mlx_itune.model.serving.reply import Form, Reply
from mlx_itune.model.serving.text_stream import TextStream

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


@pytest.fixture
def form() -> Form:
    from mlx_lm.tool_parsers import json_tools

    traits = SimpleNamespace(
        has_thinking=True,
        think_start="<think>",
        think_end="</think>",
        has_tool_calling=True,
        tool_call_start="<tool_call>",
        tool_call_end="</tool_call>",
        structural_markers=(),
        response_transitions={},
    )
    return Form(traits, ("<tool_call>", "</tool_call>"), json_tools.parse_tool_call)


def told(form: Form, text: str, tools: Any = (), *, opened: bool = False) -> dict[str, Any]:
    """All that a reply says, letter by letter."""
    reply, said = Reply(form, tools, opened=opened), dict[str, Any]()
    for n, letter in enumerate(text, 1):
        for key, value in reply.push(letter, is_last=n == len(text)).items():
            said[key] = said[key] + value if key in said else value
    for n, call in enumerate(said.get("tool_calls", [])):
        assert (call.pop("index"), call.pop("type")) == (n, "function")
        assert call.pop("id")
    return said


def test_words_reasoning_and_calls_are_told_apart(form: Form) -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    assert told(form, "plain <b>words</b> <") == {"content": "plain <b>words</b> <"}
    assert told(form, f"<think>so</think>\n\nYes\n{CALL}\n") == {
        "reasoning_content": "so", "content": "Yes\n", "tool_calls": [call]
    }  # fmt: skip
    assert told(form, f"\n{CALL}\n{CALL}\n") == {"tool_calls": [call, call]}
    assert told(form, " \n") == {"content": " \n"}
    # A prompt that opens the thought.
    assert told(form, "so</think>Yes", opened=True) == {"reasoning_content": "so", "content": "Yes"}
    # What only looks like a call stays as it was written.
    for text in ("<tool_call>{no</tool_call>", "<tool_call>[]x", '<tool_call>{"name": "f"}'):
        assert told(form, text) == {"content": text}


HARD = {
    "words": 'a "quoted" \u7528\nline <b> {"x": [1]}', "whole": 3, "part": 2.5, "on": True,
    "list": ["a", 1], "inner": {"k": ["v"]}, "code": "007", "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, each in FAMILIES.items() if each.calls])
def test_calls_come_back_as_the_template_writes_them(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    chat = chat_tokenizer("starter", family)
    chat.hf.save_pretrained(tmp_path)
    form = form_of(tmp_path, chat)
    assert form.parse and not form.note
    # LFM's template writes a line's end into a text in quotes, which is no Python.
    given = {**HARD, "words": "a b"} if name.startswith("lfm") else HARD
    for count in (1, family.calls):
        calls = [{"name": f"look_{n}", "arguments": given} for n in range(count)]
        for text in written(chat, calls):
            said = told(form, text, tools_for(calls))
            made = [call["function"] for call in said.pop("tool_calls")]
            assert [{**call, "arguments": json.loads(call["arguments"])} for call in made] == calls
            assert not said
            # Cut anywhere, nothing of it is lost; words are no call.
            half = told(form, text[: len(text) // 2], tools_for(calls))
            assert half.get("tool_calls") or half["content"]
    assert told(form, "It is 3.", tools_for(calls)) == {"content": "It is 3."}


# How a template that nobody has looked at may write calls: their text, and whether that is read.
AROUND = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNSEEN = {
    "<|ACT|>{{ c.id }}<|ARGS|>{{ c.function.arguments | tojson }}<|/ACT|>": False,
    '<|ACT|>[{"tool": "{{ c.function.name }}", "with": {{ c.function.arguments | tojson }}}]': True,
    "<fn={{ c.function.name }}>{{ c.function.arguments | tojson }}</fn>": True,
    "TOOL: {{ c | tojson }}\n": True,
    "{{ c.function.name }}({{ c.function.arguments.items() | list }})": False,
}


@pytest.mark.parametrize("call", UNSEEN)
def test_calls_of_a_template_nobody_has_seen(call: str, tmp_path: Path) -> None:
    hf = chat_tokenizer("starter", FAMILIES["qwen3"]).hf
    hf.save_pretrained(tmp_path)
    chat = ChatTokenizer(hf, AROUND.replace("CALL", call))
    form = form_of(tmp_path, chat)
    assert (form.parse is not None) == UNSEEN[call] == (not form.note)
    calls = [{"name": "look", "arguments": HARD}]
    (text, *_) = written(chat, calls) if "c.id" not in call else ("<|ACT|>x<|ARGS|>{}<|/ACT|>",)
    said = told(form, text, tools_for(calls))
    if not UNSEEN[call]:
        assert said == {"content": text}
    else:
        (made,) = (each["function"] for each in said.pop("tool_calls"))
        assert (made["name"], json.loads(made["arguments"]), said) == ("look", HARD, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
            {"reasoning_content": "Look.", "tool_calls": 1},
        ),
        ("<|channel|>final<|message|>Yes.", {"content": "Yes."}),
    ],
)
def test_channels_of_gpt_oss(text: str, said: dict[str, Any], tmp_path: Path) -> None:
    chat = chat_tokenizer("starter", FAMILIES["gpt_oss"])
    chat.hf.save_pretrained(tmp_path)
    got = told(form_of(tmp_path, chat), text)
    if "tool_calls" in got:
        got["tool_calls"] = len(got["tool_calls"])
    assert got == said


def test_a_bare_object_is_a_call_of_a_tool_only(tmp_path: Path) -> None:
    chat = chat_tokenizer("starter", FAMILIES["llama3"])
    chat.hf.save_pretrained(tmp_path)
    form = form_of(tmp_path, chat)
    text = '{"name": "f", "parameters": {"x": 1}}'
    tools = tools_for([{"name": "f", "arguments": {"x": 1}}])
    for whole in (text, f"<|python_tag|>{text}", f"\n {text}"):
        assert told(form, whole, tools)["tool_calls"][0]["function"]["name"] == "f"
    assert told(form, text) == told(form, text, tools_for([])) == {"content": text}
    for other in (text.replace("f", "g", 1), text[:-1], "{} and more", "<|pyth"):
        assert told(form, other, tools) == {"content": other}


def test_a_panic_under_a_request_is_a_500_of_that_request(form: Form) -> None:
    class PanicException(BaseException):
        """As Rust under Python raises it."""

    def encode_ids(text: str) -> list[int]:
        raise PanicException("index out of bounds")

    tokenizer: Any = SimpleNamespace(text_start="", encode_ids=encode_ids, stop_strings=())
    desk = Desk({"a": Served(None, tokenizer, form)}, {}, {}, 10)
    with pytest.raises(Refusal, match="index out of bounds") as refused:
        desk.read(b'{"prompt": "x"}', is_chat=False)
    assert refused.value.status == 500


TEXTS = (
    "Plain words.",
    "  two spaces, 用药 🙂🙂 e\u0301 👩‍⚕️ Ärzte\n\n\ttab ",
    "🙂" * 200,
    "a\ufffdb" * 90,
    "word " * 300,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> ChatTokenizer:
    return load_tokenizer(tiny_model_dir)


def pieces(tokenizer: ChatTokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    stream, found = TextStream(tokenizer.decode, stops), []
    for n, token in enumerate(ids, 1):
        piece, finish = stream.take(token, "length" if n == len(ids) else None)
        found.append(piece)
        if finish:
            break
    return found


def test_pieces_are_whole_characters_and_add_up(tokenizer: ChatTokenizer) -> None:
    for text in TEXTS:
        got = pieces(tokenizer, tokenizer.encode_ids(text))
        assert "".join(got) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in got)
    draw = random.Random(0)
    for _ in range(20):
        ids = [draw.randrange(len(tokenizer.hf)) for _ in range(400)]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_stop_string_is_found_at_any_place(tokenizer: ChatTokenizer) -> None:
    text = TEXTS[1] + TEXTS[0]
    ids = tokenizer.encode_ids(text)
    for start in range(len(text) - 2):
        stop = text[start : start + 2]
        wanted = text[: text.index(stop)]
        assert "".join(pieces(tokenizer, ids, (stop, "never"))) == wanted
    # The earliest of several ends the text; one that never comes whole cuts nothing.
    assert "".join(pieces(tokenizer, ids, ("words", "lain"))) == TEXTS[1] + "P"
    assert "".join(pieces(tokenizer, ids, ("words.!",))) == text
