"""Which turns are learned, and where they stand; tests/masks compares every token."""

import chat_templates as t
import numpy as np
import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render, render_many
from mlx_itune.kit.errors import DataError

ANSWERS = [
    "zolpidem",
    ":) 5 mg",
    "\n\nmetformin\n- twice",
    "日本 🦙 é e\u0301",
    "  two spaces",
    "im_end",
    "user",
    "1",
]


def talk(answers, system=None):
    turns = [Turn("system", system)] if system else []
    for n, answer in enumerate(answers):
        turns += [Turn("user", f"Wörd {n} 🦙 it?"), Turn("assistant", answer)]
    return Conversation(tuple(turns), "f.jsonl:1", tags={"task": "x"})


@pytest.mark.parametrize("template", [t.CHATML, t.STARTER, t.LLAMA3, t.LLAMA2, t.PHI3, t.GEMMA])
def test_prefix_preserving_templates_share_one_text(chat, template):
    examples = render(talk(["yes", "no", "maybe"]), chat("llama3", template))
    assert len(examples) == 1 and len(examples[0].spans) == 3


@pytest.mark.parametrize("template", [t.QWEN3, t.REASONER, t.PLAIN])
def test_templates_that_rewrite_earlier_turns_get_an_example_per_turn(chat, template):
    examples = render(talk(["yes", "no", "maybe"]), chat("gpt2", template))
    assert sorted(len(example.spans) for example in examples) == [1, 1, 1]


def test_the_first_turn_of_a_shared_text_can_stray_alone(chat):
    # "merging" glues the header's newline to an answer that starts with one.
    tokenizer = chat("merging", t.CHATML)
    row = talk(["\n\n\nx", "yes"])
    examples = render(row, tokenizer)
    assert len(examples) == 2
    for example in examples:
        ((start, end),) = example.spans
        prompts = [tokenizer.prompt_ids(row.turns[:n]) for n in (1, 3)]
        assert example.input_ids[:start].tolist() in prompts
        assert np.array_equal(np.flatnonzero(example.weights), np.arange(start, end))
        assert (example.origin, example.tags) == ("f.jsonl:1", {"task": "x"})


def test_last_and_marked_choose_turns_and_weights_are_kept(chat):
    tokenizer = chat("gpt2", t.CHATML)
    turns = (
        Turn("user", "a"),
        Turn("assistant", "one", weight=0.5),
        Turn("user", "b"),
        Turn("assistant", "two", weight=0.0),
        Turn("user", "c"),
        Turn("assistant", "three"),
    )
    conversation = Conversation(turns, "f:1")
    found = {
        learn: [
            (float(e.weights[start]), tokenizer.decode(e.input_ids[start:end]))
            for e in render(conversation, tokenizer, learn)
            for start, end in e.spans
        ]
        for learn in ("all", "last", "marked")
    }
    assert found == {
        "all": [(0.5, "one<|im_end|>"), (1.0, "three<|im_end|>")],
        "last": [(1.0, "three<|im_end|>")],
        "marked": [(0.5, "one<|im_end|>")],
    }


def test_a_row_without_anything_to_learn_gives_no_example(chat):
    silent = Conversation((Turn("user", "a"), Turn("assistant", "b", weight=0.0)), "f:1")
    assert render(silent, chat("gpt2")) == ()
    assert render(talk(["b"]), chat("gpt2"), "marked") == ()


def test_turns_after_the_last_reply_are_left_out(chat):
    tokenizer = chat("gpt2", t.CHATML)
    asked = Conversation((*talk(["yes"]).turns, Turn("user", "and?")), "f:1")
    (example,) = render(asked, tokenizer)
    (plain,) = render(talk(["yes"]), tokenizer)
    assert example.input_ids.tolist() == plain.input_ids.tolist()


def test_bos_is_there_once_and_only_where_the_template_says(chat):
    for template, count in ((t.LLAMA3, 1), (t.GEMMA, 1), (t.CHATML, 0)):
        tokenizer = chat("llama2", template)
        (example,) = render(talk(["yes"]), tokenizer)
        assert example.input_ids.tolist().count(tokenizer.hf.bos_token_id) == count


def test_what_a_template_refuses_is_a_fault_of_the_row(chat):
    with pytest.raises(DataError, match=r"f\.jsonl:1: .*System role not supported"):
        render(talk(["yes"], system="no"), chat("gpt2", t.GEMMA))


def test_many_rows_give_what_single_rows_give(chat):
    tokenizer = chat("merging", t.STARTER)
    rows = [talk(ANSWERS[: n % 5 + 1]) for n in range(300)]
    for row, together in zip(rows, render_many(rows, tokenizer), strict=True):
        alone = render(row, tokenizer)
        assert [e.input_ids.tolist() for e in alone] == [e.input_ids.tolist() for e in together]
        assert [e.weights.tolist() for e in alone] == [e.weights.tolist() for e in together]


def test_tool_calls_are_learned_and_tool_results_are_not(chat):
    template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = chat("gpt2", template)
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    turns = (
        Turn("user", "look"),
        Turn("assistant", "", tool_calls=(call,)),
        Turn("tool", "found"),
        Turn("assistant", "done"),
    )
    tools = ({"type": "function", "function": {"name": "look"}},)
    (example,) = render(Conversation(turns, "f:1", tools), tokenizer)
    said = [tokenizer.decode(example.input_ids[a:b]) for a, b in example.spans]
    assert said == ['{"name": "look", "arguments": {"x": 1}}<|im_end|>', "done<|im_end|>"]
    assert example.input_ids[: example.spans[0][0]].tolist() == tokenizer.prompt_ids(
        turns[:1], tools
    )
