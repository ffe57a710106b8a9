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
    """(prompt, reply) of each learned turn as text; the prompt is inference's, token for token."""
    tokenizer = chat_tokenizer(base, FAMILIES[name])
    found = []
    for example in render(Conversation(turns, "f.jsonl:1", tools), tokenizer):
        for start, end in example.spans:
            ids = example.input_ids.tolist()
            found.append((tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])))
    return found


def test_a_system_text_that_only_prompts_show_takes_nothing_from_the_reply():
    plain = learned("mistral_v3", Turn("user", "a"), Turn("assistant", "b"))
    system = learned("mistral_v3", Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))
    assert plain == [("<s>[INST] a[/INST]", " b</s>")]
    assert system == [("<s>[INST] s\n\na[/INST]", " b</s>")]


def test_thoughts_that_history_drops_take_nothing_from_the_reply():
    turns = (
        Turn("user", "a"),
        Turn("assistant", "hm", weight=0.0, tool_calls=(CALL,)),
        Turn("tool", "r"),
        Turn("assistant", "b"),
    )
    ((prompt, reply),) = learned("gpt_oss", *turns)
    assert prompt.endswith("<|start|>assistant")
    assert reply == "<|channel|>final<|message|>b<|return|>"


def test_a_call_without_an_end_does_not_run_on_into_what_follows():
    turns = (Turn("user", "a"), Turn("assistant", "", tool_calls=(CALL,)))
    ((_, reply),) = learned("command_r", *turns, tools=(TOOL,))
    assert reply.endswith("]```<|END_OF_TURN_TOKEN|>")
    assert reply.count("<|") == 1


def test_the_end_of_a_turn_is_the_tokenizers_own_where_the_template_writes_it():
    ((_, reply),) = learned("command_r7b", Turn("user", "a"), Turn("assistant", "b"))
    assert reply == "b<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"


def test_old_sentencepiece_files_put_no_space_before_a_reply_on_its_own():
    ((prompt, reply),) = learned(
        "chatml", Turn("user", "a"), Turn("assistant", "\n\nyes"), base="small_legacy"
    )
    assert prompt.endswith("assistant\n")
    assert reply == "\n\nyes<|im_end|>"


@pytest.mark.parametrize(
    ("name", "words", "end"),
    [
        ("mistral_nemo", ">", "</s>"),
        ("mistral_nemo", "</", "</s>"),
        ("llama3", "_id", "<|eot_id|>"),
    ],
)
def test_words_that_occur_in_the_end_token_do_not_hide_it(name, words, end):
    ((_, reply),) = learned(name, Turn("user", "a"), Turn("assistant", words, tool_calls=(CALL,)))
    assert reply.endswith(end) and reply.count(end) == 1


@pytest.mark.parametrize("cut", ["/think", "/no_think", "/system_override"])
def test_halves_of_a_control_string_that_a_template_joins_stay_text(cut):
    tokenizer = chat_tokenizer("gpt2", FAMILIES["smollm3"])
    start = tokenizer.hf.convert_tokens_to_ids("<|im_start|>")
    turns = (Turn("system", f"<|im_{cut}start|>"), Turn("user", "a"), Turn("assistant", "b"))
    try:
        (example,) = render(Conversation(turns, "f.jsonl:1"), tokenizer)
    except DataError:
        return
    assert example.input_ids.tolist().count(start) == 3


@pytest.mark.parametrize("name", ["chatml", "granite", "llama3_0", "smollm3"])
def test_calls_that_a_template_drops_are_refused_not_learned_as_silence(name):
    turns = (Turn("user", "a"), Turn("assistant", "", tool_calls=(CALL,)))
    with pytest.raises(DataError):
        learned(name, *turns)


def test_a_reply_that_begins_like_a_prompt_is_not_taken_for_a_later_turns_opening():
    turns = (
        Turn("user", "a"),
        Turn("assistant", "<think>\nfirst, without an end", weight=0.0),
        Turn("user", "b"),
        Turn("assistant", "second"),
    )
    ((prompt, reply),) = learned("deepseek_r1", *turns)
    assert prompt.endswith("b<｜Assistant｜><think>\n")
    assert reply == "second<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("cut", ["/think", "/no_think", "/system_override"])
def test_halves_of_markup_that_a_template_joins_stay_text(cut):
    tokenizer = chat_tokenizer("gpt2", FAMILIES["smollm3"])
    thought = tokenizer.hf.convert_tokens_to_ids("</think>")

    def thoughts(system: str) -> int:
        turns = (Turn("system", system), Turn("user", "a"), Turn("assistant", "b"))
        (example,) = render(Conversation(turns, "f.jsonl:1"), tokenizer)
        return example.input_ids.tolist().count(thought)

    plain = thoughts(f"a {cut} system")
    try:
        joined = thoughts(f"</th{cut}ink>")
    except DataError:
        return
    assert joined == plain


def test_a_dropped_call_is_refused_even_if_its_name_stands_in_the_text():
    calls = tuple(
        {**CALL, "id": f"call0000{n}", "function": {"name": name, "arguments": {"x": 1}}}
        for n, name in enumerate(("f", "final"))
    )
    with pytest.raises(DataError):
        learned("gpt_oss", Turn("user", "a"), Turn("assistant", "final", tool_calls=calls))
