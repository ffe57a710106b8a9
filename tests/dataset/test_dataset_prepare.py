"""Over-long rows, the account of turns, and the order of batches."""

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


def adds_up(report):
    return report.turns == report.turns_whole + report.turns_truncated + report.turns_dropped


@pytest.mark.parametrize("too_long", ["split", "truncate", "drop"])
@pytest.mark.parametrize("template", [t.CHATML, t.QWEN3, t.STARTER])
@pytest.mark.parametrize("limit", [12, 40, 70, 100, 200, 5000])
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
    assert adds_up(report)
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
    limit = len(whole.examples[0].input_ids) // 2
    split = prepare([row], tokenizer, max_length_tokens=limit)
    assert said(split, tokenizer) == said(whole, tokenizer)
    assert split.report.split == ["f:1"] and split.report.turns_whole == 5
    assert len(split.examples) > 1
    for example in split.examples:
        text = tokenizer.decode(example.input_ids)
        assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n")


def test_the_last_turn_keeps_as_much_context_as_fits(chat):
    tokenizer = chat("gpt2", t.CHATML)
    row = talk("f:1", 5, 5, 5, 5, 5)
    limit = len(prepare([row], tokenizer).examples[0].input_ids) - 1
    prepared = prepare([row], tokenizer, max_length_tokens=limit, learn="last")
    (example,) = prepared.examples
    assert "ask 1" in tokenizer.decode(example.input_ids)
    assert "ask 0" not in tokenizer.decode(example.input_ids)


def test_a_single_exchange_is_truncated_or_dropped_and_reported(chat):
    tokenizer = chat("gpt2", t.CHATML)
    long_reply, short = talk("f:1", 80), talk("f:3", 0)
    long_prompt = Conversation((Turn("user", "y " * 90), Turn("assistant", "z")), "f:2")
    report = prepare([long_reply, long_prompt, short], tokenizer, max_length_tokens=60).report
    assert report.truncated == ["f:1"] and report.dropped == ["f:2"]
    assert (report.turns, report.turns_whole) == (3, 1)
    assert adds_up(report) and report.split == []


def test_rows_with_nothing_to_learn_stay_out_and_an_empty_rest_is_an_error(chat):
    tokenizer = chat("gpt2", t.CHATML)
    silent = Conversation((Turn("user", "a"), Turn("assistant", "b", weight=0.0)), "f:1")
    report = prepare([silent, talk("f:2", 1)], tokenizer).report
    assert report.nothing_to_learn == ["f:1"] and report.examples == 1
    with pytest.raises(DataError, match="1 rows have no turn to learn"):
        prepare([silent], tokenizer)
    with pytest.raises(DataError, match="no rows"):
        prepare([], tokenizer)


def test_special_tokens_spelled_out_in_a_row_are_reported(chat):
    tricky = Conversation((Turn("user", "a<|im_end|>"), Turn("assistant", "b")), "f:9")
    report = prepare([tricky, talk("f:1", 1)], chat("gpt2", t.CHATML)).report
    assert report.control_text == ["f:9"]


def test_an_epoch_visits_every_row_once_in_its_own_order():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    assert len({tuple(order) for order in orders}) == 4
    assert list(orders[0]) == list(epoch_order(1000, 0, 0))


def test_the_order_of_an_epoch_never_changes_between_versions():
    assert epoch_order(8, 7, 3).tolist() == [6, 0, 7, 1, 5, 4, 3, 2]


@pytest.mark.parametrize("size", [1, 3, 10, 11, 100])
def test_every_epoch_learns_every_row_once_with_a_short_last_batch(size):
    found = list(batches(10, size, seed=0, epochs=3))
    per_epoch = -(-10 // size)
    assert [b.step for b in found] == list(range(1, 3 * per_epoch + 1))
    for epoch in range(3):
        rows = [row for b in found if b.epoch == epoch for row in b.rows]
        assert rows == epoch_order(10, 0, epoch).tolist()


def test_steps_stop_early_or_run_on_into_further_epochs():
    assert len(list(batches(10, 4, seed=0, epochs=3, steps=2))) == 2
    assert len(list(batches(10, 4, seed=0, epochs=1, steps=50))) == 3
    on = list(batches(10, 4, seed=0, steps=8))
    assert [b.epoch for b in on] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert on[:3] == list(batches(10, 4, seed=0, epochs=1))


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 15), (0.1, 3), (1.5, 45), (0.01, 1)])
def test_fractions_of_an_epoch_are_steps(epochs, steps):
    assert len(list(batches(30, 1, seed=0, epochs=epochs))) == steps


@pytest.mark.parametrize("bad", [{"epochs": None}, {"n_rows": 0}, {"batch_size": 0}])
def test_a_plan_that_makes_no_sense_is_refused_at_once(bad):
    plan = {"n_rows": 3, "batch_size": 2, "epochs": 1} | bad
    with pytest.raises(UsageError):
        batches(plan.pop("n_rows"), plan.pop("batch_size"), seed=0, **plan)


def test_error_names_the_long_rows(chat):
    rows, tokenizer = [talk("f:1", 80), talk("f:2", 0)], chat("gpt2", t.CHATML)
    with pytest.raises(DataError, match=r"1 rows are longer than 60 tokens: f:1 \(\d+ tokens\)"):
        prepare(rows, tokenizer, max_length_tokens=60, too_long="error")


def test_a_turn_that_ends_exactly_at_the_limit_is_whole(chat):
    tokenizer = chat("gpt2", t.CHATML)
    row = talk("f:1", 3, 3)
    end = prepare([row], tokenizer).examples[0].spans[0][1]
    exact = prepare([row], tokenizer, max_length_tokens=end, too_long="truncate").report
    assert (exact.turns_whole, exact.turns_truncated, exact.turns_dropped) == (1, 0, 1)
    short = prepare([row], tokenizer, max_length_tokens=end - 1, too_long="truncate").report
    assert (short.turns_whole, short.turns_truncated, short.turns_dropped) == (0, 1, 1)
