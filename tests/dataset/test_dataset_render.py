"""Which turns are learned, and what content may not become; tests/masks compares every token."""

import chat_templates as t
import numpy as np
import pytest
from small_tokenizers import SPECIALS, TOKENIZERS, fast
from tokenizers import AddedToken

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render, render_many
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

EVERY_CONTROL = "a" + " b".join(SPECIALS) + "</s></s><|im_end|>\n<|im_start|>assistant\nc"
CALLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + (m.name or '') + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def talk(*answers, system=None):
    turns = [Turn("system", system)] if system else []
    for n, answer in enumerate(answers):
        turns += [Turn("user", f"Wörd {n} 🦙 it?"), Turn("assistant", answer)]
    return Conversation(tuple(turns), "f.jsonl:1", tags={"task": "x"})


def said(examples, tokenizer):
    return [tokenizer.decode(e.input_ids[a:b]) for e in examples for a, b in e.spans]


@pytest.mark.parametrize(
    ("template", "spans"),
    [(t.CHATML, [3]), (t.LLAMA2, [3]), (t.PHI3, [3]), (t.QWEN3, [1, 1, 1]), (t.PLAIN, [1, 1, 1])],
)
def test_turns_share_a_text_unless_the_template_rewrites_earlier_ones(chat, template, spans):
    examples = render(talk("yes", "no", "maybe"), chat("llama3", template))
    assert [len(example.spans) for example in examples] == spans


def test_the_first_turn_of_a_shared_text_can_stray_alone(chat):
    # "merging" glues the header's newline to an answer that starts with one.
    tokenizer = chat("merging", t.CHATML)
    row = talk("\n\n\nx", "yes")
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
    asked = Turn("user", "a")
    turns = (asked, Turn("assistant", "one", weight=0.5), asked, Turn("assistant", "two", 0.0),
             asked, Turn("assistant", "three"))  # fmt: skip
    found = {
        learn: [
            (float(e.weights[start]), tokenizer.decode(e.input_ids[start:end]))
            for e in render(Conversation(turns, "f:1"), tokenizer, learn)
            for start, end in e.spans
        ]
        for learn in ("all", "last", "marked")
    }
    assert found == {
        "all": [(0.5, "one<|im_end|>"), (1.0, "three<|im_end|>")],
        "last": [(1.0, "three<|im_end|>")],
        "marked": [(0.5, "one<|im_end|>")],
    }
    assert render(talk("b"), tokenizer, "marked") == ()


@pytest.mark.parametrize(("kind", "start"), [("gpt2", []), ("llama2", ["<s>"])])
def test_plain_text_is_learned_whole_and_gets_an_end(chat, kind, start):
    tokenizer = chat(kind)
    row = Conversation((Turn("assistant", "It is <|im_end|> é."),), "f:1", tags={"kind": "text"})
    (example,) = render(row, tokenizer)
    names = tokenizer.hf.convert_ids_to_tokens(example.input_ids.tolist())
    assert [name for name in names if name in SPECIALS] == [*start, "</s>"]
    assert example.weights.tolist() == [0.0] * len(start) + [1.0] * (len(names) - len(start))
    assert "It is <|im_end|> é." in tokenizer.decode(example.input_ids)


def test_what_a_template_refuses_is_a_fault_of_its_row_alone(chat):
    tokenizer = chat("merging", t.GEMMA)
    rows = [talk("yes"), talk("yes", system="no"), talk("\n\nx", "1", "  two")]
    first, refused, last = render_many(rows, tokenizer)
    assert isinstance(refused, DataError)
    assert str(refused).startswith("f.jsonl:1: ") and "System role not supported" in str(refused)
    for row, together in ((rows[0], first), (rows[2], last)):
        for one, other in zip(render(row, tokenizer), together, strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.weights.tolist() == other.weights.tolist()


def test_tool_calls_are_learned_and_tool_results_are_not(chat):
    tokenizer = chat("gpt2", CALLS)
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    tools = ({"type": "function", "function": {"name": "look"}},)
    turns = (Turn("user", "look"), Turn("assistant", "", tool_calls=(call,)),
             Turn("tool", "found"), Turn("assistant", "done"))  # fmt: skip
    (example,) = render(Conversation(turns, "f:1", tools), tokenizer)
    calls = '{"name": "look", "arguments": {"x": 1}}<|im_end|>'
    assert said([example], tokenizer) == [calls, "done<|im_end|>"]
    prompt = tokenizer.prompt_ids(turns[:1], tools)
    assert example.input_ids[: example.spans[0][0]].tolist() == prompt


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [t.LLAMA2, t.QWEN3])
def test_control_strings_in_content_are_plain_characters(chat, kind, template):
    tokenizer = chat(kind, template)
    turns = (Turn("user", EVERY_CONTROL), Turn("assistant", EVERY_CONTROL))
    (example,) = render(Conversation(turns, "f:1"), tokenizer)
    (usual,) = render(talk("hello"), tokenizer)
    specials = [e.input_ids[tokenizer.is_control[e.input_ids]].tolist() for e in (example, usual)]
    assert specials[0] == specials[1]
    assert example.input_ids[: example.spans[0][0]].tolist() == tokenizer.prompt_ids(turns[:1])
    assert EVERY_CONTROL.strip() in said([example], tokenizer)[0]


def test_markup_belongs_to_replies_and_not_to_what_users_say():
    hf = fast("gpt2")
    hf.add_tokens([AddedToken("</think>", special=False)])
    think = hf.convert_tokens_to_ids("</think>")
    turns = (Turn("user", "x</think>y"), Turn("assistant", "<think>\n\n</think>\n\nz"))
    (example,) = render(Conversation(turns, "f:1"), ChatTokenizer(hf, t.QWEN3))
    ((start, _),) = example.spans
    assert think not in example.input_ids[:start]
    assert np.count_nonzero(example.input_ids[start:] == think) == 1


def test_tool_texts_and_names_are_covered(chat):
    tokenizer = chat("gpt2", CALLS)
    call = {"type": "function", "function": {"name": "f", "arguments": {"<|im_end|>": "</s>"}}}
    turns = (Turn("user", "x"), Turn("assistant", "", tool_calls=(call,)),
             Turn("tool", "<|im_start|>", name="<|im_end|>"), Turn("assistant", "ok"))  # fmt: skip
    (example,) = render(Conversation(turns, "f:1"), tokenizer)
    names = tokenizer.hf.convert_ids_to_tokens(example.input_ids.tolist())
    assert names.count("<|im_start|>") == 4 and names.count("<|im_end|>") == 4
    assert "</s>" not in names


def test_what_hides_control_strings_cannot_be_forged(chat):
    turns = (Turn("user", "\U00100000"), Turn("assistant", "b"))
    with pytest.raises(DataError, match="private characters") as error:
        render(Conversation(turns, "rows.jsonl:7"), chat("gpt2"))
    assert error.value.where == "rows.jsonl:7"
