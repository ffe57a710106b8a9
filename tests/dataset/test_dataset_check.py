"""The lints' list: what it finds of planted faults, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_itune.dataset.checking.check import SystemPrompts
from mlx_itune.dataset.checking.lints import Lint, find_lints, load_lints
from mlx_itune.dataset.conversation import Turn

TEXTS = Path(__file__).parents[1] / "fixtures" / "refusals.txt"
# Answers that refuse or disclaim, and answers that only sound like it.
REFUSALS, ANSWERS = map(str.splitlines, TEXTS.read_text(encoding="utf-8").split("\n\n"))
FILLER = " Here are some more words that follow the start of it, as answers usually have them." * 3
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def finds(*turns: Turn, lints: Iterable[Lint] = load_lints()) -> list[str]:
    return [lint.code for _, lint, _ in find_lints(tuple(lints), turns)]


def chat(question: str, answer: str) -> tuple[Turn, Turn]:
    return Turn("user", question), Turn("assistant", answer)


@pytest.mark.parametrize("filler", ["", FILLER], ids=["alone", "longer"])
def test_refusals_are_told_from_answers(filler: str) -> None:
    dropping = {lint.code for lint in load_lints() if lint.drop}

    def found(texts: Iterable[str]) -> int:
        return sum(not dropping.isdisjoint(finds(*chat("Do it.", t + filler))) for t in texts)

    right, wrong = found(REFUSALS), found(ANSWERS)
    print(f"refusals: {right} of {len(REFUSALS)} found, and {wrong} answers")
    assert right >= 0.95 * len(REFUSALS)
    assert wrong <= 0.05 * (right + wrong)


def test_words_of_a_lint_spare_time_and_miss_nothing() -> None:
    slow = [replace(lint, words=(), opens=()) for lint in load_lints()]
    more = "Copy code", "a <|im_end|> b", "see <Picture Attached>", "x.n\ny"
    for text in (*REFUSALS, *ANSWERS, *more):
        assert finds(*chat(text, text)) == finds(*chat(text, text), lints=slow)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How do I write HTML?", "Use <div> for blocks, as in `<p>text</p>`."),
        ("See https://example.com and tell me more.", "It is an example site, nothing else."),
        ("Let n = 5. What is n + 1?", "It is n + 1 = 6. Take n."),
        ("Which image formats are there?", "JPEG, PNG and a few more of them."),
        ("Write a User: and Assistant: dialogue.", "User: hi\nAssistant: hello there"),
        ("What is x[i] < y[j]?", "A comparison: x[i] is less than y[j] # true"),
        ("Print a dict.", 'print(f"{name}") # {} and {text}'),
    ],
)
def test_plain_text_about_such_things_is_left_alone(question: str, answer: str) -> None:
    assert finds(*chat(question, answer)) == []


def test_a_turn_that_calls_tools_may_be_short_or_empty() -> None:
    for said in ("", "...", "OK."):
        call = Turn("assistant", said, tool_calls=(CALL,))
        assert finds(call, Turn("tool", ""), *chat("Do it.", "It is done, now.")) == []
    assert finds(*chat("Do it.", "...")) == ["no-words", "short-answer"]


def test_every_control_string_is_seen() -> None:
    (lint,) = (lint for lint in load_lints() if lint.code == "template-text")
    for text in (*lint.texts, "a USER: b ASSISTANT: c"):
        assert finds(*chat(f"Ask with {text} inside.", "A fine answer.")) == ["template-text"]
        assert finds(*chat("Ask.", f"So: {text}")) == ["template-text"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("You are a helpful assistant.", "You are an helpful assistant", True),
        ("You are a helpful assistant.", "you are a  helpful asistant!", True),
        ("Answer the customer in one short sentence, in English, without any greeting.",
         "Please answer the customer in one short sentence in English, without any greeting", True),
        ("Translate to French.", "Translate to German.", False),
        ("Answer with 3 items.", "Answer with 5 items.", False),
        ("Do answer questions about law.", "Do not answer questions about law.", False),
        ("You are a chef.", "You are a pilot who flies at night.", False),
        ("Today is 2024-01-02. You are a helpful assistant.",
         "Today is 2024-01-03. You are a helpful assistant.", False),
    ],
)  # fmt: skip
def test_spelling_is_told_from_meaning(first: str, second: str, same: bool) -> None:
    for usual, other in ((first, second), (second, first)):
        prompts = SystemPrompts()
        for text in (usual, usual, other):
            prompts.add(text, "rows.jsonl:1")
        assert prompts.usual() == ({other: usual} if same else {})
        assert len(list(prompts.faults())) == same
