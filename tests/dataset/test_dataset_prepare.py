"""Over-long rows, the account of turns, and the order of batches."""

from dataclasses import replace

import chat_templates as t
import numpy as np
import pytest

from mlx_itune.dataset.batching import batches, epoch_order
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.kit.errors import DataError, UsageError


def talk(origin, *lengths, system="be kind"):
    turns = [Turn("system", system)] if system else []
    for n, length in enumerate(lengths):
        turns += [Turn("user", f"ask {n}"), Turn("assistant", f"say {n} " + "x " * length)]
    return Conversation(tuple(turns), origin)


def said(preparation, tokenizer):
    return [tokenizer.decode(e.input_ids[a:b]) for e in preparation.examples for a, b in e.spans]


@pytest.mark.parametrize("too_long", ["split", "truncate", "drop"])
@pytest.mark.parametrize("template", [t.CHATML, t.QWEN3])
@pytest.mark.parametrize("limit", [12, 40, 100, 5000])
@pytest.mark.parametrize("learn", ["all", "last"])
def test_nothing_is_too_long_and_every_turn_is_accounted_for(
    chat, too_long, template, limit, learn
):
    rows = [talk(f"f:{n}", *[7 * k % 30 for k in range(n + 1)]) for n in range(8)]
    tokenizer = chat("gpt2", template)
    options = {"max_length_tokens": limit, "learn": learn, "too_long": too_long}
    try:
        prepared = prepare(rows, tokenizer, **options)
    except DataError as error:
        assert "nothing is left to learn" in str(error) and limit < 100
        return
    report = prepared.report
    assert report.turns == report.turns_whole + report.turns_truncated + report.turns_dropped
    assert report.turns == (8 if learn == "last" else sum(range(1, 9)))
    out = sum(len(example.spans) for example in prepared.examples)
    assert out == report.turns_whole + report.turns_truncated
    assert all(0 < len(e.input_ids) <= limit for e in prepared.examples)
    assert all(e.weights[-1] > 0 for e in prepared.examples)
    learned = sum(int((e.weights > 0).sum()) for e in prepared.examples)
    assert report.supervised_tokens == learned
    assert report.rows == 8 and report.examples == len(prepared.examples)


def test_splitting_keeps_every_turn_whole_under_its_system_turn(chat):
    tokenizer = chat("gpt2", t.CHATML)
    row = talk("f:1", 5, 5, 5, 5, 5)
    whole = prepare([row], tokenizer)
    length = len(whole.examples[0].input_ids)
    split = prepare([row], tokenizer, max_length_tokens=length // 2)
    assert said(split, tokenizer) == said(whole, tokenizer)
    assert split.report.split == ["f:1"] and split.report.turns_whole == 5
    # An exchange before a piece is read once more, and not learned again.
    led = prepare([row], tokenizer, max_length_tokens=length // 2, overlap=1)
    assert said(led, tokenizer) == said(whole, tokenizer) and led.report.turns_whole == 5
    read = [tokenizer.decode(e.input_ids).count("say") for e in led.examples]
    assert sum(read) == 5 + len(read) - 1
    assert all(len(example.input_ids) <= length // 2 for example in led.examples)
    texts = [tokenizer.decode(example.input_ids) for example in split.examples]
    assert len(texts) > 1
    start = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n"
    assert all(text.startswith(start) for text in texts)
    # The last turn keeps as much context as fits.
    (last,) = prepare([row], tokenizer, max_length_tokens=length - 1, learn="last").examples
    text = tokenizer.decode(last.input_ids)
    assert "ask 1" in text and "ask 0" not in text and len(last.spans) == 1


def test_every_row_that_is_cut_left_out_or_odd_is_named(chat):
    tokenizer = chat("gpt2", t.CHATML)
    long_prompt = Conversation((Turn("user", "y " * 90), Turn("assistant", "z")), "f:2")
    silent = Conversation((Turn("user", "a"), Turn("assistant", "b", weight=0.0)), "f:3")
    tricky = Conversation((Turn("user", "a<|im_end|>"), Turn("assistant", "b")), "f:4")
    rows = [talk("f:1", 80), long_prompt, silent, tricky]
    report = prepare(rows, tokenizer, max_length_tokens=60).report
    assert (report.truncated, report.dropped, report.split) == (["f:1"], ["f:2"], [])
    assert (report.nothing_to_learn, report.control_text) == (["f:3"], ["f:4"])
    assert (report.turns, report.turns_whole, report.turns_truncated) == (3, 1, 1)
    with pytest.raises(DataError, match="1 rows have no turn to learn"):
        prepare([silent], tokenizer)
    with pytest.raises(DataError, match="no rows"):
        prepare([], tokenizer)
    with pytest.raises(DataError, match=r"2 rows are longer than 60 tokens: f:1 \(\d+ tokens\)"):
        prepare(rows, tokenizer, max_length_tokens=60, too_long="error")


def test_a_turn_that_ends_exactly_at_the_limit_is_whole(chat):
    tokenizer = chat("gpt2", t.CHATML)
    row = talk("f:1", 3, 3)
    (_, end), (start, _) = prepare([row], tokenizer).examples[0].spans
    for limit, length, turns in (
        (end - 1, end - 1, (0, 1, 1)),
        (end, end, (1, 0, 1)),
        (start, end, (1, 0, 1)),
        (start + 1, start + 1, (1, 1, 0)),
    ):
        cut = prepare([row], tokenizer, max_length_tokens=limit, too_long="truncate")
        report = cut.report
        assert (report.turns_whole, report.turns_truncated, report.turns_dropped) == turns
        assert [len(example.input_ids) for example in cut.examples] == [length]


def test_an_epoch_visits_every_row_once_in_an_order_that_never_changes():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(8, 7, 3).tolist() == [6, 0, 7, 1, 5, 4, 3, 2], "in no version"


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_every_epoch_learns_every_row_once_with_a_short_last_batch(size):
    found = list(batches(10, size, seed=0, epochs=3))
    assert [b.step for b in found] == list(range(1, 3 * -(-10 // size) + 1))
    for epoch in range(3):
        rows = [row for b in found if b.epoch == epoch for row in b.rows]
        assert rows == epoch_order(10, 0, epoch).tolist()
    assert list(batches(10, size, seed=0, steps=len(found))) == found, "steps alone run on"


@pytest.mark.parametrize(
    ("rows", "size", "epochs", "steps", "made"),
    [(10, 4, 3, 2, 2), (10, 4, 1, 50, 3), (30, 1, 0.5, None, 15), (100, 1, 0.07, None, 7),
     (30, 1, 1.5, None, 45), (30, 1, 0.01, None, 1)],
)  # fmt: skip
def test_epochs_and_steps_end_a_plan(rows, size, epochs, steps, made):
    assert len(list(batches(rows, size, seed=0, epochs=epochs, steps=steps))) == made


def test_rows_of_like_length_come_together_and_each_once():
    lengths = np.random.default_rng(0).integers(10, 500, 1001)
    order, grouped = (
        list(batches(1001, 4, seed=5, epochs=1, lengths=given)) for given in (None, lengths)
    )
    assert sorted(row for b in grouped for row in b.rows) == list(range(1001))
    padded = [
        sum(len(b.rows) * max(lengths[list(b.rows)]) for b in plan) for plan in (order, grouped)
    ]
    assert padded[1] < 1.05 * lengths.sum() < padded[0]
    # Within a window of the order, so that an epoch stays random.
    for at, batch in enumerate(grouped):
        window = {row for b in order[at // 16 * 16 : at // 16 * 16 + 16] for row in b.rows}
        assert set(batch.rows) <= window
    firsts = [lengths[b.rows[0]] for b in grouped]
    assert abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.2


@pytest.mark.parametrize(("rows", "size", "epochs"), [(3, 2, None), (0, 2, 1), (3, 0, 1)])
def test_a_plan_that_makes_no_sense_is_refused_at_once(rows, size, epochs):
    with pytest.raises(UsageError):
        batches(rows, size, seed=0, epochs=epochs)


def test_tokens_are_counted_by_source_and_broken_marks_named(chat):
    rows = [talk("a.jsonl:1", 3), replace(talk("b.jsonl:1", 9), tags={"source": "quiz"})]
    tokenizer = chat("gpt2", t.CHATML + "{# <|no_token_of_this|> #}")
    report = prepare(rows, tokenizer).report
    assert list(report.source_tokens) == ["a", "quiz"]
    assert sum(report.source_tokens.values()) == report.tokens
    assert tokenizer.broken_marks == ["<|no_token_of_this|>"]
    assert "letter by letter" in [*report.about_template(tokenizer)][-1]
