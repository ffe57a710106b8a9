"""The lints' list: what it finds of planted faults, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from refusals import ANSWERS, REFUSALS

from mlx_itune.dataset.checking import load_lints
from mlx_itune.dataset.checking.check import SystemPrompts
from mlx_itune.dataset.checking.lints import Lint, Screen
from mlx_itune.dataset.conversation import Conversation, Turn

FILLER = "Here are some more words that follow the start of it, as answers usually have them. " * 3
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def finds(
    rows: Iterable[Conversation], lints: Iterable[Lint] = load_lints()
) -> list[tuple[str, str]]:
    screen = Screen(tuple(lints))
    return [(row.origin, lint.code) for row in rows for _, lint, _ in screen.find(row.turns)]


def chat(question: str, answer: str, origin: str) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)), origin)


@pytest.mark.parametrize("filler", ["", " " + FILLER], ids=["alone", "longer"])
def test_refusals_are_told_from_answers(filler: str) -> None:
    dropping = {lint.code for lint in load_lints() if lint.drop}
    refusals = [chat("Do it, please.", t + filler, f"no:{n}") for n, t in enumerate(REFUSALS)]
    answers = [chat("Do it, please.", t + filler, f"yes:{n}") for n, t in enumerate(ANSWERS)]
    found = {origin for origin, code in finds([*refusals, *answers]) if code in dropping}
    right = sum(row.origin in found for row in refusals)
    recall, precision = right / len(refusals), right / len(found)
    print(f"refusals: recall {recall:.3f} precision {precision:.3f} of {len(refusals)}")
    assert recall >= 0.95
    assert precision >= 0.95


def test_words_of_a_lint_spare_time_and_miss_nothing() -> None:
    texts = [*REFUSALS, *ANSWERS, "Copy code", "a <|im_end|> b", "see <Picture Attached>", "x.n\ny"]
    rows = [chat(t, t, f"{n}") for n, t in enumerate(texts)]
    slow = [replace(lint, words=(), opens=()) for lint in load_lints()]
    assert finds(rows) == finds(rows, slow)


def test_a_turn_that_calls_tools_may_be_short_or_empty() -> None:
    turns = Turn("user", "Please, do it."), Turn("tool", ""), Turn("assistant", "It is done, now.")
    for said in ("", "...", "OK."):
        call = Turn("assistant", said, tool_calls=(CALL,))
        assert finds([Conversation((turns[0], call, *turns[1:]), "1")]) == []
    assert finds([chat("Do it.", "...", "1")]) == [("1", "no-words"), ("1", "short-answer")]


def test_plain_text_about_such_things_is_left_alone() -> None:
    rows = [
        chat("How do I write HTML?", "Use <div> for blocks, as in `<p>text</p>`.", "1"),
        chat(
            "See https://example.com and tell me more.", "It is an example site, nothing else.", "2"
        ),
        chat("Let n = 5. What is n + 1?", "It is n + 1 = 6. Take n.", "3"),
        chat("Which image formats are there?", "JPEG, PNG and a few more of them.", "4"),
        chat("Write a User: and Assistant: dialogue.", "User: hi\nAssistant: hello there", "5"),
        chat("What is x[i] < y[j]?", "A comparison: x[i] is less than y[j] # true", "6"),
        chat("Print a dict.", 'print(f"{name}") # {} and {text}', "7"),
    ]
    assert finds(rows) == []


def test_every_control_string_is_seen() -> None:
    (lint,) = (lint for lint in load_lints() if lint.code == "template-text")
    for text in (*lint.texts, "a USER: b ASSISTANT: c"):
        for row in (
            chat(f"Ask with {text} inside.", "A fine answer.", "1"),
            chat("Ask.", f"So: {text}", "1"),
        ):
            assert finds([row]) == [("1", "template-text")]


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
    prompts = SystemPrompts()
    for n, text in enumerate((first, first, second)):
        prompts.add(text, f"rows.jsonl:{n + 1}")
    faults = list(prompts.faults())
    assert bool(faults) == same
    assert prompts.usual() == ({second: first} if same else {})
    if same:
        assert "rows.jsonl:1" in faults[0].message
    prompts = SystemPrompts()
    for text in (second, second, first):
        prompts.add(text, "rows.jsonl:1")
    assert prompts.usual() == ({first: second} if same else {})
