"""Every token's label and every prompt, family by family, against the oracle.

The whole of it (10,000 conversations a family, both real tokenizers and the starter's) is
`make masks`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from masks.agreement import Tally, chat_tokenizer, compare, disagreement
from masks.conversations import Generator
from masks.families import FAMILIES
from masks.family import Refused
from masks.oracle import expect, learned_turns, messages_of, runs_of, text_of
from masks.vocabularies import coder, missing
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render
from mlx_itune.kit.errors import DataError

# Conversations by tokenizer.
ORDINARY = {"starter": 200, "sentencepiece": 80, "merging": 80}
HOSTILE = {"starter": 30, "small_legacy": 15}
# One of each kind: plain words around turns, rewritten history, tools that move.
REAL = (("llama2", "llama2"), ("llama2", "mistral_v3"), ("llama3_start", "qwen3"))

each_family = pytest.mark.parametrize("name", FAMILIES)


@each_family
def test_every_label_and_every_prompt_is_the_oracles(name):
    tally = Tally()
    # Most of those that reason are two: with their switch on and off.
    share = 2 if FAMILIES[name].reasons else 1
    for base, count in ORDINARY.items():
        tally.add(compare(base, FAMILIES[name], count // share))
    assert not tally.faults, tally.told()
    assert tally.rows == 360 // share < tally.turns and tally.refused * 10 < tally.rows
    assert not tally.apart, "turns that could share a text do"


@each_family
def test_control_strings_in_content_stay_text(name):
    tally = Tally()
    for base, count in HOSTILE.items():
        tally.add(compare(base, FAMILIES[name], count, hostile=True))
    assert not tally.faults, tally.told()
    assert tally.turns > 25


@pytest.mark.parametrize(("base", "name"), REAL)
def test_the_real_tokenizers_agree_too(base, name):
    if reason := missing(base):
        pytest.skip(reason)
    tally = compare(base, FAMILIES[name], 60)
    tally.add(compare(base, FAMILIES[name], 20, hostile=True))
    assert not tally.faults, tally.told()


@pytest.mark.masks
@each_family
@pytest.mark.parametrize("base", ("llama2", "llama3", "starter"))
def test_ten_thousand_conversations(base, name, pytestconfig):
    count = pytestconfig.getoption("--count")
    if reason := missing(base):
        pytest.skip(reason)
    tally = compare(base, FAMILIES[name], count, seed=1)
    tally.add(compare(base, FAMILIES[name], count // 5, seed=1, hostile=True))
    assert not tally.faults, tally.told()


@each_family
def test_what_the_oracle_spells_is_what_the_template_writes(name):
    family = FAMILIES[name]
    view, generator, checked = coder("gpt2", family), Generator(family, 7), 0
    for number in range(30):
        row = generator.conversation(number + 1)
        try:
            whole, turns = learned_turns(view, row, "all")
        except Refused:
            continue
        for turn in turns:
            kept = whole.startswith(turn.prompt + turn.reply)
            assert kept == turn.kept or turn.open_ended
            said = messages_of(row)[: turn.n + 1]
            # What was thought may be shown nowhere.
            words = turn.reply.rpartition(view.named(family.closes))[2] if family.closes else ""
            shown = words.lstrip("\n") or turn.reply
            assert shown in text_of(view, said, row.tools, prompt=False)
        learned = [ids for _, ids, _ in runs_of(expect(view, row, "all").examples)]
        texts = sorted(view.hf.decode(ids) for ids in learned)
        replies = [
            view.spelled(turn.reply) + (family.eos if turn.open_ended else "") for turn in turns
        ]
        # Tokens that swallow the space after them take it from the reply.
        if family.rstrip:
            texts, replies = [sorted(t.lstrip() for t in some) for some in (texts, replies)]
        assert texts == sorted(replies)
        checked += len(learned)
    assert checked > 15


@pytest.mark.parametrize("name", ("chatml", "llama2", "qwen3", "phi3"))
@pytest.mark.parametrize("base", ("starter", "sentencepiece", "merging"))
def test_the_private_names_change_no_token(base, name):
    view, generator = coder(base, FAMILIES[name]), Generator(FAMILIES[name], 5)
    for number in range(20):
        for turn in learned_turns(view, generator.conversation(number + 1), "all")[1]:
            named = turn.prompt + turn.reply
            plain = view.full.encode(view.spelled(named), add_special_tokens=False).ids
            assert view.ids_of([named]) == [plain]


@pytest.mark.parametrize("name", ("chatml", "llama3", "qwen3", "mistral_v3", "gpt_oss"))
def test_no_character_stands_for_a_control_token(name):
    view, tokenizer = coder("starter", FAMILIES[name]), chat_tokenizer("starter", FAMILIES[name])

    def specials(asked, answer):
        row = Conversation((Turn("user", asked), Turn("assistant", answer)), "f:1")
        (example,) = render(row, tokenizer)
        return [i for i in example.input_ids.tolist() if i in view.specials]

    meant = specials("a", "b")
    # Planes 15 and 16 and the private area of plane 0, where stand-ins might be kept.
    for start in (0xE000, 0xF0000, 0x100000, 0x108000):
        for code in (*range(start, start + 2 * len(view.ids)), start + 0x7FFD):
            for length in (1, len("<|im_end|>"), len("<|endoftext|>")):
                try:
                    assert specials(chr(code) * length, chr(code)) == meant
                except DataError:
                    continue


def test_a_wrong_label_a_wrong_context_and_a_lost_turn_are_seen():
    family = FAMILIES["chatml"]
    view, tokenizer = coder("starter", family), chat_tokenizer("starter", family)
    turns = (Turn("user", "a"), Turn("assistant", "b c"), Turn("user", "d"), Turn("assistant", "e"))
    row = Conversation(turns, "f.jsonl:1")
    expected = expect(view, row, "all")
    (right,) = render(row, tokenizer)
    ids, weights = right.input_ids, right.weights
    wrong = [replace(right, weights=np.abs(weights - np.eye(1, len(ids), n)[0]))
             for n in range(len(ids))]  # fmt: skip
    wrong.append(replace(right, input_ids=ids + np.eye(1, len(ids), 1, dtype=np.int32)[0]))
    longer = np.append(ids, ids[-1]), np.append(weights, np.float32(0))
    wrong.append(replace(right, input_ids=longer[0], weights=longer[1]))
    assert disagreement(view, tokenizer, row, expected, [right]) is None
    assert disagreement(view, tokenizer, row, expected, [])
    assert all(disagreement(view, tokenizer, row, expected, [one]) for one in wrong)
