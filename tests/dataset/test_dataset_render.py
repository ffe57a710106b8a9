"""The mask against an oracle that knows the templates but not the renderer."""

from collections.abc import Callable

import chat_templates as t
import numpy as np
import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render, render_many
from mlx_itune.kit.errors import DataError

# What a model has to write after the generation prompt, spelled out by hand per template.
REPLY: dict[str, tuple[str, Callable[[str], str]]] = {
    "chatml": (t.CHATML, lambda c: c + "<|im_end|>"),
    "starter": (t.STARTER, lambda c: " " + c + "<|end|>"),
    "llama2": (t.LLAMA2, lambda c: " " + c.strip() + " </s>"),
    "llama3": (t.LLAMA3, lambda c: c.strip() + "<|eot_id|>"),
    "gemma": (t.GEMMA, lambda c: c.strip() + "<end_of_turn>"),
    "qwen3": (t.QWEN3, lambda c: "<think>\n\n</think>\n\n" + c + "<|im_end|>"),
    "reasoner": (t.REASONER, lambda c: c + "<|end|>"),
    "phi3": (t.PHI3, lambda c: c + "<|end|>"),
    "plain": (t.PLAIN, lambda c: " " + c + "</s>"),
}
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


def check(conversation, tokenizer, reply, learned):
    """Every learned turn is in exactly one example, in inference's context, and says its reply."""
    examples = render(conversation, tokenizer)
    unlearned = [n for n, turn in enumerate(conversation.turns) if n in learned]
    for example in examples:
        assert example.input_ids.dtype == np.int32 and example.weights.dtype == np.float32
        assert len(example.input_ids) == len(example.weights)
        covered = np.zeros(len(example.weights), dtype=bool)
        for start, end in example.spans:
            prompts = {
                n: tokenizer.prompt_ids(conversation.turns[:n], conversation.tools)
                for n in unlearned
            }
            n = next(n for n in unlearned if example.input_ids[:start].tolist() == prompts[n])
            unlearned.remove(n)
            whole = tokenizer.decode(example.input_ids[:end])
            prompt = tokenizer.decode(example.input_ids[:start])
            assert whole.removeprefix(prompt) == reply(conversation.turns[n].content)
            assert int(example.input_ids[end - 1]) in tokenizer.eos_ids
            covered[start:end] = True
        assert np.array_equal(example.weights > 0, covered)
        assert covered[-1]
        assert (example.origin, example.tags) == ("f.jsonl:1", {"task": "x"})
    assert unlearned == []
    return examples


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "merging", "llama2"])
@pytest.mark.parametrize("template", REPLY)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_reply_is_learned_whole_and_nothing_else(chat, kind, template, answer):
    text, reply = REPLY[template]
    if template == "qwen3":
        answer = answer.lstrip("\n")
    check(talk([answer]), chat(kind, text), reply, {1})


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "merging", "llama2"])
@pytest.mark.parametrize("template", REPLY)
def test_every_turn_of_a_dialogue_is_learned_once_in_inference_context(chat, kind, template):
    text, reply = REPLY[template]
    answers = [answer.strip() for answer in ANSWERS[:4]]
    check(talk(answers), chat(kind, text), reply, {1, 3, 5, 7})


@pytest.mark.parametrize("template", ["chatml", "starter", "llama3", "plain"])
def test_a_system_turn_is_context(chat, template):
    text, reply = REPLY[template]
    check(talk(["yes", "no"], system="Be brief. 日本"), chat("gpt2", text), reply, {2, 4})


@pytest.mark.parametrize("template", ["chatml", "starter", "llama3", "llama2", "phi3", "gemma"])
def test_prefix_preserving_templates_share_one_text(chat, template):
    examples = render(talk(["yes", "no", "maybe"]), chat("llama3", REPLY[template][0]))
    assert len(examples) == 1 and len(examples[0].spans) == 3


@pytest.mark.parametrize("template", ["qwen3", "reasoner", "plain"])
def test_templates_that_rewrite_earlier_turns_get_an_example_per_turn(chat, template):
    examples = render(talk(["yes", "no", "maybe"]), chat("gpt2", REPLY[template][0]))
    assert sorted(len(example.spans) for example in examples) == [1, 1, 1]


@pytest.mark.parametrize("template", ["chatml", "starter", "llama2", "llama3", "plain"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_old_sentencepiece_files_keep_the_inference_context(chat, template, answer):
    # They write a space after every special token, which no text shows: the ids are what counts.
    tokenizer = chat("llama2_legacy", REPLY[template][0])
    conversation = talk([answer, "ok"])
    prompts = [tokenizer.prompt_ids(conversation.turns[:n]) for n in (1, 3)]
    starts = []
    for example in render(conversation, tokenizer):
        for start, end in example.spans:
            starts.append(example.input_ids[:start].tolist())
            assert int(example.input_ids[end - 1]) in tokenizer.eos_ids
    assert sorted(starts) == sorted(prompts)


def test_the_first_turn_of_a_shared_text_can_stray_alone(chat):
    # "merging" glues the header's newline to an answer that starts with one.
    tokenizer = chat("merging", t.CHATML)
    examples = check(talk(["\n\n\nx", "yes"]), tokenizer, REPLY["chatml"][1], {1, 3})
    assert {len(example.spans) for example in examples} == {1}
    assert len(examples) == 2


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
