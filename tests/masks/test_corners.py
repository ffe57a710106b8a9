"""Corners the comparison found, each as small as it gets."""

from __future__ import annotations

import pytest

from masks.agreement import chat_tokenizer
from masks.families import FAMILIES
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render
from mlx_itune.kit.errors import DataError

CALL = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"properties": {}}},
}


def learned(name, *turns, tools=(), base="gpt2"):
    """(prompt, reply) of each learned turn as text."""
    tokenizer = chat_tokenizer(base, FAMILIES[name])
    return [
        (
            tokenizer.decode(example.input_ids[:start]),
            tokenizer.decode(example.input_ids[start:end]),
        )
        for example in render(Conversation(turns, "f.jsonl:1", tools), tokenizer)
        for start, end in example.spans
    ]


def said(text, weight=None, calls=()):
    return Turn("assistant", text, weight, calls)


ASKED = Turn("user", "a")
CORNERS = {
    "a system text that only prompts show takes nothing from the reply": (
        "mistral_v3", (Turn("system", "s"), ASKED, said("b")),
        "<s>[INST] s\n\na[/INST]", " b</s>",
    ),
    "thoughts that history drops take nothing from the reply": (
        "gpt_oss", (ASKED, said("hm", 0.0, (CALL,)), Turn("tool", "r"), said("b")),
        "<|start|>assistant", "<|channel|>final<|message|>b<|return|>",
    ),
    "the end of a turn is the tokenizer's own where the template writes it": (
        "command_r7b", (ASKED, said("b")),
        "<|START_RESPONSE|>", "b<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "a reply that begins like a prompt is not taken for a later turn's opening": (
        "deepseek_r1",
        (ASKED, said("<think>\nfirst, without an end", 0.0), Turn("user", "b"), said("second")),
        "b<｜Assistant｜><think>\n", "\n</think>\n\nsecond<｜end▁of▁sentence｜>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("corner", CORNERS)
def test_corner(corner):
    name, turns, prompt_end, wanted = CORNERS[corner]
    ((prompt, reply),) = learned(name, *turns)
    assert prompt.endswith(prompt_end) and reply == wanted


def test_old_files_put_no_space_before_a_reply_and_no_call_runs_on_into_what_follows():
    ((prompt, reply),) = learned("chatml", ASKED, said("\n\nyes"), base="small_legacy")
    assert prompt.endswith("assistant\n") and reply == "\n\nyes<|im_end|>"
    ((_, reply),) = learned("command_r", ASKED, said("", calls=(CALL,)), tools=(TOOL,))
    assert reply.endswith("]```<|END_OF_TURN_TOKEN|>") and reply.count("<|") == 1


@pytest.mark.parametrize(
    ("name", "words", "end"),
    [
        ("mistral_nemo", ">", "</s>"),
        ("mistral_nemo", "</", "</s>"),
        ("llama3", "_id", "<|eot_id|>"),
    ],
)
def test_words_that_occur_in_the_end_token_do_not_hide_it(name, words, end):
    ((_, reply),) = learned(name, ASKED, said(words, calls=(CALL,)))
    assert reply.endswith(end) and reply.count(end) == 1


@pytest.mark.parametrize("name", ["chatml", "granite", "llama3_0", "smollm3"])
def test_calls_that_a_template_drops_are_refused_not_learned_as_silence(name):
    with pytest.raises(DataError):
        learned(name, ASKED, said("", calls=(CALL,)))


def test_a_dropped_call_is_refused_even_if_its_name_stands_in_the_text():
    calls = tuple(
        {**CALL, "id": f"call0000{n}", "function": {"name": name, "arguments": {"x": 1}}}
        for n, name in enumerate(("f", "final"))
    )
    with pytest.raises(DataError):
        learned("gpt_oss", ASKED, said("final", calls=calls))


@pytest.mark.parametrize("cut", ["/think", "/no_think", "/system_override"])
@pytest.mark.parametrize(("token", "halves"), [("<|im_start|>", 5), ("</think>", 4)])
def test_halves_of_a_control_string_that_a_template_joins_stay_text(cut, token, halves):
    tokenizer = chat_tokenizer("gpt2", FAMILIES["smollm3"])
    wanted = tokenizer.hf.convert_tokens_to_ids(token)

    def times(system: str) -> int:
        row = Conversation((Turn("system", system), ASKED, said("b")), "f.jsonl:1")
        (example,) = render(row, tokenizer)
        return example.input_ids.tolist().count(wanted)

    try:
        joined = times(f"{token[:halves]}{cut}{token[halves:]}")
    except DataError:
        return
    assert joined == times(f"a {cut} system")
