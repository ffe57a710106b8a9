"""Evaluation: every row counts, exactly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.inference.evaluate import EvalSettings, evaluate, question
from mlx_itune.inference.generate import Generator
from mlx_itune.model.engine.loss import plain_nll
from mlx_itune.model.loading.base import load


def row(text: str, answer: str, n: int, **tags: str) -> Conversation:
    return Conversation(
        (Turn("user", text), Turn("assistant", answer)), f"rows.jsonl:{n}", (), tags
    )


def test_loss_is_the_mean_over_supervised_tokens_of_all_rows(tiny_model_dir: Path) -> None:
    loaded, tokenizer = load(str(tiny_model_dir)), load_tokenizer(tiny_model_dir)
    rows = [row("Hello " * n, "yes " * (2 * n), n) for n in range(1, 12)]
    result = evaluate(loaded, tokenizer, rows, EvalSettings(generate=False))
    total = weight = 0.0
    for example in prepare(rows, tokenizer).examples:
        nll, tokens = plain_nll(loaded.model, example.input_ids[None], example.weights[None])
        total, weight = total + float(nll.item()), weight + float(tokens.item())
    assert result.loss == pytest.approx(total / weight, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert (result.rows, result.supervised_tokens) == (11, int(weight))
    assert result.exact_match is None
    assert result.tasks == {}


def test_scores_are_per_task_and_their_mean(tiny_model_dir: Path) -> None:
    loaded, tokenizer = load(str(tiny_model_dir)), load_tokenizer(tiny_model_dir)
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
    assert result.tasks["own"].exact_match == 1
    assert result.exact_match == 0.5
    assert ("loss", 3, 3) in seen
    assert ("answers", 3, 3) in seen


def test_the_question_is_the_last_assistant_turn(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    turns = (
        Turn("user", "a"),
        Turn("assistant", "first"),
        Turn("user", "b"),
        Turn("assistant", "second"),
    )
    asked = question(Conversation(turns, "x:1"), tokenizer)
    assert asked == (tokenizer.prompt_ids(turns[:3]), "second")
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"id": 7}}}
    calling = Conversation((Turn("user", "a"), Turn("assistant", "", tool_calls=(call,))), "x:2")
    answered = question(calling, tokenizer)
    assert answered is not None
    assert "lookup" in answered[1]
