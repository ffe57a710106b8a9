"""Repeated rows: what is found of planted copies, and what is left alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from mlx_itune.dataset.checking.check import split_of
from mlx_itune.dataset.checking.near_duplicates import Duplicates, Match
from mlx_itune.dataset.conversation import Conversation, Turn

VOCABULARY = [
    a + b + c
    for a in "ba ce di fo gu ha ke li mo nu pa re si to vu wa".split()
    for b in "ndo rle sti mba ck lt rn sk pp gle tten ving".split()
    for c in ("", "ra", "no", "is")
]
# As frequent as in prose: rows of another content share these.
COMMON = "the of and to a in is that it for was on are with they be at one have this".split()


def conversation(question: str, answer: str) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)), "rows:1")


def sentence(rng: random.Random) -> str:
    words = [rng.choice(COMMON if rng.random() < 0.4 else VOCABULARY) for _ in range(12)]
    if rng.random() < 0.2:
        words[rng.randrange(12)] = str(rng.randint(2, 3000))
    return " ".join(words[: rng.randint(6, 12)]).capitalize() + rng.choice("...?!")


def prose(rng: random.Random, sentences: int) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def found(rows: Sequence[Conversation]) -> list[Match]:
    """The best match of every repeated row."""
    with closing(Duplicates()) as duplicates:
        first = [(number, duplicates.add(row)) for number, row in enumerate(rows)]
        exact = [Match(row, earlier, "exact", 1.0) for row, earlier in first if earlier is not None]
        return [*exact, *(matches[0] for matches in duplicates.near())]


def with_words(text: str, rng: random.Random, change: Callable[[str], str]) -> str:
    parts = text.split()
    for place in rng.sample(range(len(parts)), rng.randint(1, 3)):
        parts[place] = change(parts[place])
    return " ".join(parts)


def slipped(word: str) -> str:
    # Another number would be another row.
    return (
        word if word[0].isdigit() or len(word) < 4 else word[:-3] + word[-2] + word[-3] + word[-1]
    )


def reordered(text: str) -> str:
    first, second, *rest = re.split(r"(?<=[.?!]) ", text)
    return " ".join([second, first, *rest])


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "words": lambda text, rng: with_words(text, rng, lambda word: rng.choice(VOCABULARY)),
    "typos": lambda text, rng: with_words(text, rng, slipped),
    "added words": lambda text, rng: with_words(text, rng, lambda word: f"{word} really"),
    "punctuation": lambda text, rng: re.sub(r"[.?!]", lambda _: rng.choice([" ;", "", "!"]), text),
    "case": lambda text, rng: rng.choice([text.upper(), text.title(), text.replace(" ", "  ")]),
    "order": lambda text, rng: reordered(text),
    "longer": lambda text, rng: f"{text} One more thing at the end.",
}


def test_planted_pairs_are_found_and_nothing_else() -> None:
    rng = random.Random(7)
    rows = [(prose(rng, rng.randint(1, 3)), prose(rng, rng.randint(3, 8))) for _ in range(19_500)]
    planted = rng.sample(range(len(rows)), 500)
    for number, original in enumerate(planted):
        question, answer = rows[original]
        edit = list(EDITS.values())[number % len(EDITS)]
        rows.append((question if number % 3 else EDITS["typos"](question, rng), edit(answer, rng)))
    matches = found([conversation(*row) for row in rows])
    right = {
        m.later for m in matches if m.later >= 19_500 and m.earlier == planted[m.later - 19_500]
    }
    print(f"found {len(right)} of 500, {len(matches) - len(right)} others")
    assert len(right) >= 495
    assert len(matches) - len(right) <= 2


def test_kinds_of_repeats() -> None:
    rng = random.Random(1)
    question, answer = prose(rng, 3), prose(rng, 3)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    called, recalled = (
        Conversation((Turn("user", question), Turn("assistant", "", tool_calls=(c,))), "rows:1")
        for c in (call, {**call, "function": {"name": "g", "arguments": {}}})
    )
    rows = [
        conversation(question, answer),
        conversation(question, answer),
        conversation(question.upper(), answer),
        conversation(question, answer.replace(answer.split()[3], "edited")),
        conversation("Hello there", "Hi!"),
        conversation("hello  there", "hi!"),
        conversation("Hello there", "Ho!"),
        called,
        recalled,
        called,
    ]
    kinds = {match.later: (match.kind, match.earlier) for match in found(rows)}
    assert kinds == {
        1: ("exact", 0), 2: ("spelling", 0), 3: ("near", 0), 5: ("exact", 4), 9: ("exact", 7),
    }  # fmt: skip


def test_another_answer_number_or_name_is_another_row() -> None:
    rng = random.Random(2)
    story = prose(rng, 6)
    rows = [
        conversation(story + " How many are left of 12?", "There are 5 of them left in the end."),
        conversation(story + " How many are left of 30?", "There are 5 of them left in the end."),
        conversation(story + " How many are left of 30?", "There are 7 of them left in the end."),
        conversation(story + " Is it so?", "yes"),
        conversation(story + " Is it so?", "no"),
        conversation(story + " Which is it?", "lost_or_stolen_card"),
        conversation(story + " Which is it?", "lost_or_stolen_phone"),
        conversation("What is the capital of France?", "The capital is a big city there."),
        conversation("What is the capital of Spain?", "The capital is a big city there."),
    ]
    assert found(rows) == []


def test_what_many_rows_share_is_their_template() -> None:
    rng = random.Random(3)
    task = prose(rng, 8)
    rows = [conversation(f"{task}\n{prose(rng, 1)}", "positive") for _ in range(40)]
    copy = rows[17].turns[0].content
    rows.append(conversation(copy.replace(copy.split()[3], "edited"), "positive"))
    assert [(match.later, match.earlier) for match in found(rows)] == [(40, 17)]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    rows = [
        conversation(
            "请问一下，长江有多长？它从哪里流到哪里？", "长江全长约六千三百公里，从青海流到上海。"
        ),
        conversation(
            "请问一下，长江有多长？它从哪里流到哪里？", "长江全长大约六千三百公里，从青海流到上海"
        ),
        conversation(
            "请问一下，黄河有什么特点？为什么叫这个名字？", "黄河含沙量很大，因此水是黄色的。"
        ),
    ]
    assert [(match.later, match.earlier) for match in found(rows)] == [(1, 0)]


def test_texts_without_words_and_look_alikes_without_end() -> None:
    signs = [conversation("?" * n, "! " * n) for n in range(30, 90)]
    alike = [conversation("The same question as ever, word by word, once more?", f"Yes {'x' * n}.")
             for n in range(3000)]  # fmt: skip
    matches = found([*signs, *alike])
    assert all(match.later >= len(signs) for match in matches)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("alpaca_test.json", "test"),
        ("validation-00000-of-00002.parquet", "valid"),
        ("dev/part1.jsonl", "valid"),
        ("trainee.jsonl", None),
        ("test_data/rows.jsonl", None),
        ("latest.jsonl", None),
    ],
)
def test_names_tell_splits(path: str, split: str | None) -> None:
    assert split_of(Path("/data") / path) == split
