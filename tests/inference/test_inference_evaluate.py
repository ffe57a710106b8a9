"""Evaluation: every row counts, exactly; exact match and token-F1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.evaluate import EvalSettings, evaluate, question
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.scoring import (
    Confusion,
    Pair,
    exact_match,
    json_score,
    label_score,
    scorer_for,
    token_f1,
    way_of,
)
from mlx_itune.kit.errors import UsageError
from mlx_itune.model.engine.loss import plain_nll
from mlx_itune.model.loading.base import LoadedModel, load


@pytest.fixture(scope="module")
def opened(tiny_model_dir: Path) -> tuple[LoadedModel, ChatTokenizer]:
    return load(str(tiny_model_dir)), load_tokenizer(tiny_model_dir)


def row(text: str, answer: str, n: int, **tags: str) -> Conversation:
    return Conversation(
        (Turn("user", text), Turn("assistant", answer)), f"rows.jsonl:{n}", (), tags
    )


def test_loss_is_the_mean_over_supervised_tokens_of_all_rows(opened: Any) -> None:
    loaded, tokenizer = opened
    rows = [row("Hello " * n, "yes " * (2 * n), n) for n in range(1, 12)]
    result = evaluate(loaded, tokenizer, rows, EvalSettings(generate=False))
    total = weight = 0.0
    for example in prepare(rows, tokenizer).examples:
        nll, tokens = plain_nll(loaded.model, example.input_ids[None], example.weights[None])
        total, weight = total + float(nll.item()), weight + float(tokens.item())
    assert result.loss == pytest.approx(total / weight, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert (result.rows, result.supervised_tokens) == (11, int(weight))
    assert (result.exact_match, result.tasks) == (None, {})


def test_scores_are_per_task_and_their_mean(opened: Any) -> None:
    loaded, tokenizer = opened
    prompt = tokenizer.prompt_ids([Turn("user", "Hello")])
    own_answer = Generator(loaded, tokenizer).batch([prompt], 6)[0]
    rows = [
        row("Hello", own_answer, 1, task="own"),
        row("Hello", "zzz", 2, task="other"),
        row("Hello", "zzz", 3, task="other"),
    ]
    seen: list[tuple[str, int, int]] = []
    result = evaluate(
        loaded, tokenizer, rows, EvalSettings(max_new_tokens=6), lambda *event: seen.append(event)
    )
    assert {task: score.rows for task, score in result.tasks.items()} == {"own": 1, "other": 2}
    assert (result.tasks["own"].exact_match, result.exact_match) == (1, 0.5)
    # The mean over tasks and the share of rows are two numbers.
    assert result.exact_match_rows == result.score == pytest.approx(1 / 3)
    assert [(a.row.origin, a.is_right) for a in result.answers][:2] == [
        ("rows.jsonl:1", True),
        ("rows.jsonl:2", False),
    ]
    assert {("loss", 3, 3), ("answers", 3, 3)} <= set(seen)


def test_the_question_is_the_last_assistant_turn(opened: Any) -> None:
    tokenizer = opened[1]
    said = (("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"))
    turns = tuple(Turn(role, text) for role, text in said)
    asked = question(Conversation(turns, "x:1"), tokenizer)
    assert asked == (tokenizer.prompt_ids(turns[:3]), "second")
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"id": 7}}}
    calling = Conversation((Turn("user", "a"), Turn("assistant", "", tool_calls=(call,))), "x:2")
    assert "lookup" in (question(calling, tokenizer) or ("", ""))[1]


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        (" - zolpidem\n  5 mg ", "- zolpidem 5 mg", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("Routine", "routine", False),
        ("", "", True),
        ('{"hr": 72, "bp": "120/80"}', '{ "bp":"120/80", "hr":72.0 }', True),
        ('{"hr": 1}', '{"hr": true}', False),
        ('{"hr": 72} and more', '{"hr": 72}', False),
        ('{"hr": 1, "hr": 72}', '{"hr": 72}', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("[1, 2]", "[1,2]", True),
        ('{"a": 1}, "b": 2', '{"a": 1}', False),
        ("{not json}", "{not  json}", True),
    ],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, reference) is same


def test_token_f1_counts_words_as_a_bag() -> None:
    # Two words shared: precision 2/3, recall 2/4.
    assert token_f1("take zolpidem daily", "Zolpidem, take at night") == pytest.approx(4 / 7)
    assert token_f1("a a b", "a b b") == pytest.approx(2 / 3)
    assert [token_f1("", ""), token_f1("", "x"), token_f1("x", "...")] == [1, 0, 0]


@pytest.mark.parametrize(
    ("references", "way"),
    [
        (["yes", "no"] * 3, "labels"),
        (["card_arrival", "top_up"], "exact"),
        (["yes\nand no"] * 4, "exact"),
        (['{"a": 1}', '{"a": 2}'], "json"),
        (['{"a": 1}', "none"] * 2, "labels"),
        (["2 + 2 = 4\n#### 4", "so\n#### 1,200"], "numeric"),
        (["4", "5"], "exact"),
    ],
)
def test_how_a_task_is_scored_is_found_by_its_references(references: list[str], way: str) -> None:
    assert way_of(references) == way


@pytest.mark.parametrize(
    ("way", "pattern", "answer", "reference", "right"),
    [
        ("numeric", None, "It is 1,200.50 in all", "#### 1200.5", True),
        ("numeric", None, "first 7, then -3", "3", False),
        ("numeric", None, "none", "none", False),
        ("contains", None, "The capital is  PARIS.", "Paris", True),
        ("choice", None, "B) Rome, not A", "B", True),
        ("choice", None, "Bravo", "B", False),
        ("choice", None, "not spam at all", "not spam", True),
        ("regex", r"id=(\w+)", "found id=x7 there", "id=x7", True),
        ("regex", r"\d{4}", "in 1999", "2001", False),
        ("exact", None, "yes.", "yes", False),
    ],
)
def test_a_forced_way(
    way: str, pattern: str | None, answer: str, reference: str, right: bool
) -> None:
    scorer = scorer_for([reference, "A", "spam"], way, pattern)
    assert scorer.is_right(Pair(answer, reference)) is right


def test_a_way_that_cannot_be_is_refused_before_any_answer() -> None:
    for way, pattern in (("numeric", "x"), ("regex", None), ("regex", "("), ("exakt", None)):
        with pytest.raises(UsageError):
            EvalSettings(score=way, pattern=pattern)
    with pytest.raises(UsageError, match="takes too long"):
        scorer_for(["x"], "regex", "^(a|aa)+$").is_right(Pair("a" * 60 + "b", "x"))


def test_labels_and_objects_have_scores_of_their_own() -> None:
    said = [("a", "a"), ("a", "a"), ("b", "a"), ("b", "b"), ("x", "b"), ("x", "b")]
    pairs = [Pair(answer, reference) for answer, reference in said]
    found = label_score(scorer_for([pair.reference for pair in pairs]), pairs)
    # By hand: a has precision 1, recall 2/3; b has 1/2 and 1/3.
    assert found.macro_f1 == pytest.approx((0.8 + 0.4) / 2)
    assert (found.labels, found.outside) == (2, 2)
    assert found.confused[0] == Confusion("b", "x", 2)
    pairs = [
        Pair('{"intent": "go", "slots": {"city": "Rome", "day": 1}}', '{"intent":"go","slots":{}}'),
        Pair('{"intent": "go", "slots": {"city": "Oslo"}}',
             '{"intent": "go", "slots": {"city": "Rome"}}'),
        Pair("{", '{"intent": "stay", "slots": {"city": "Rome"}}'),
    ]  # fmt: skip
    objects = json_score(pairs, lambda value: "no Rome" if "Oslo" in str(value) else None)
    assert objects.valid == pytest.approx(2 / 3)
    assert objects.schema_valid == pytest.approx(1 / 3)
    assert {path: (f.rows, f.accuracy) for path, f in objects.fields.items()} == {
        "intent": (3, pytest.approx(2 / 3)),
        "slots": (1, 0),
        "slots.city": (2, 0),
    }
