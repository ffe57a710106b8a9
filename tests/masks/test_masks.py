"""Every token's label and every prompt, family by family, against the oracle.

The whole of it (10,000 conversations a family, both real tokenizers and the starter's) is
`python tests/masks/full.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from masks.agreement import (
    Tally,
    chat_tokenizer,
    compare,
    disagreement,
    text_problems,
)
from masks.conversations import Generator
from masks.families import FAMILIES
from masks.family import Refused
from masks.oracle import expect, learned_turns, runs_of
from masks.vocabularies import coder, missing
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render
from mlx_itune.kit.errors import DataError

ROWS = {"starter": 200, "sentencepiece": 80, "merging": 80}
HOSTILE = {"starter": 30, "small_legacy": 15}
# One of each kind: plain words around turns, rewritten history, tools that move.
REAL = (("llama2", "llama2"), ("llama2", "mistral_v3"), ("llama3_start", "qwen3"))

each_family = pytest.mark.parametrize("name", FAMILIES)


@each_family
def test_the_oracle_writes_what_the_template_writes(name):
    assert text_problems("starter", FAMILIES[name], 25) == []


@each_family
def test_every_label_and_every_prompt_is_the_oracles(name):
    tally = Tally()
    for base, count in ROWS.items():
        tally.add(compare(base, FAMILIES[name], count))
    assert not tally.faults, tally.told()
    assert tally.rows == 360 and tally.turns > 360 and tally.refused < 36
    # Only white space that a special token swallows may keep turns from sharing their text.
    assert FAMILIES[name].rstrip or not tally.apart


@each_family
def test_control_strings_in_content_stay_text(name):
    tally = Tally()
    for base, count in HOSTILE.items():
        tally.add(compare(base, FAMILIES[name], count, hostile=True))
    assert not tally.faults, tally.told()
    assert tally.turns > 40


@pytest.mark.parametrize("name", ("chatml", "llama3", "qwen3", "mistral_v3", "gpt_oss"))
def test_no_character_stands_for_a_control_token(name):
    family = FAMILIES[name]
    view, tokenizer = coder("starter", family), chat_tokenizer("starter", family)
    plain = Conversation((Turn("user", "a"), Turn("assistant", "b")), "f:1")
    meant = [i for i in render(plain, tokenizer)[0].input_ids.tolist() if i in view.specials]
    # Planes 15 and 16 and the private area of plane 0, where stand-ins might be kept.
    for start in (0xE000, 0xF0000, 0x100000, 0x108000):
        for code in (*range(start, start + 2 * len(view.ids)), start + 0x7FFD):
            for length in (1, len("<|im_end|>"), len("<|endoftext|>")):
                turns = (Turn("user", chr(code) * length), Turn("assistant", chr(code)))
                try:
                    (example,) = render(Conversation(turns, "f:1"), tokenizer)
                except DataError:
                    continue
                assert [i for i in example.input_ids.tolist() if i in view.specials] == meant


@pytest.mark.parametrize(("base", "name"), REAL)
def test_the_real_tokenizers_agree_too(base, name):
    if reason := missing(base):
        pytest.skip(reason)
    tally = compare(base, FAMILIES[name], 60)
    tally.add(compare(base, FAMILIES[name], 20, hostile=True))
    assert not tally.faults, tally.told()


@each_family
def test_what_the_oracle_learns_reads_as_the_replies(name):
    family = FAMILIES[name]
    view = coder("gpt2", family)
    generator = Generator(family, 7)
    checked = 0
    for number in range(30):
        row = generator.conversation(number + 1)
        try:
            turns = learned_turns(family, row, "all")
        except Refused:
            continue
        said = [ids for _, ids, _ in runs_of(expect(family, view, row, "all").examples)]
        texts = sorted(view.hf.decode(ids) for ids in said)
        replies = ["".join((*turn.reply, family.eos if turn.open_ended else "")) for turn in turns]
        # Tokens that swallow the space after them take it from the reply.
        if family.rstrip:
            texts, replies = [sorted(t.lstrip() for t in some) for some in (texts, replies)]
        assert texts == sorted(replies)
        checked += len(said)
    assert checked > 15


def test_the_private_names_change_no_token():
    for name in ("chatml", "llama2", "qwen3", "phi3"):
        family = FAMILIES[name]
        for base in ("starter", "sentencepiece", "merging"):
            view, generator = coder(base, family), Generator(family, 5)
            for number in range(20):
                row = generator.conversation(number + 1)
                for turn in learned_turns(family, row, "all"):
                    pieces = [*turn.prompt, *turn.reply]
                    assert view.ids_of([view.named(pieces)]) == [view.plain_ids("".join(pieces))]


def test_a_wrong_label_a_wrong_context_and_a_lost_turn_are_seen():
    family = FAMILIES["chatml"]
    view, tokenizer = coder("starter", family), chat_tokenizer("starter", family)
    turns = (Turn("user", "a"), Turn("assistant", "b c"), Turn("user", "d"), Turn("assistant", "e"))
    row = Conversation(turns, "f.jsonl:1")
    expected = expect(family, view, row, "all")
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
