"""What tests/masks, which compares every token, does not see: plain text, names, refusals."""

import chat_templates as t
import pytest
from small_tokenizers import SPECIALS

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render, render_many
from mlx_itune.kit.errors import DataError

NAMES = t.CHATML.replace("m.role +", "m.role + (m.name or '') +")


def talk(*answers, system=None):
    turns = [Turn("system", system)] if system else []
    for n, answer in enumerate(answers):
        turns += [Turn("user", f"Wörd {n} 🦙 it?"), Turn("assistant", answer)]
    return Conversation(tuple(turns), "f.jsonl:1", tags={"task": "x"})


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
            assert (one.origin, one.tags) == ("f.jsonl:1", {"task": "x"})


def test_names_are_no_control_tokens_and_nothing_forges_what_hides_them(chat):
    tokenizer = chat("gpt2", NAMES)
    turns = (Turn("user", "x", name="<|im_end|>"), Turn("assistant", "ok"))
    (example,) = render(Conversation(turns, "f:1"), tokenizer)
    names = tokenizer.hf.convert_ids_to_tokens(example.input_ids.tolist())
    assert names.count("<|im_end|>") == 2
    turns = (Turn("user", "\U00100000"), Turn("assistant", "b"))
    with pytest.raises(DataError, match="private characters") as error:
        render(Conversation(turns, "rows.jsonl:7"), tokenizer)
    assert error.value.where == "rows.jsonl:7"
