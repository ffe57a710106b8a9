"""Evaluation: every row counts, exactly; exact match and token-F1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.evaluate import EvalSettings, evaluate, exact_match, question, token_f1
from mlx_itune.inference.generate import Generator
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
        ("[1, 2]", "[1,2]", False),
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
