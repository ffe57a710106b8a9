"""Repeated rows: what is found of planted copies, and what is left alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.checking.check import split_of
from mlx_itune.dataset.checking.near_duplicates import Duplicates
from mlx_itune.dataset.conversation import Conversation, Turn

VOCABULARY = [
    a + b + c
    for a in "ba ce di fo gu ha ke li mo nu pa re si to vu wa".split()
    for b in "ndo rle sti mba ck lt rn sk pp gle tten ving".split()
    for c in ("", "ra", "no", "is")
]
# As frequent as in prose: rows of another content share these.
COMMON = "the of and to a in is that it for was on are with they be at one have this".split()


Edit = Callable[[str, random.Random], str]


Pair = tuple[str, str]


def conversation(question: str, answer: str, **more: Any) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer, **more)), "rows:1")


def sentence(rng: random.Random) -> str:
    words = [rng.choice(COMMON if rng.random() < 0.4 else VOCABULARY) for _ in range(12)]
    if rng.random() < 0.2:
        words[rng.randrange(12)] = str(rng.randint(2, 3000))
    return " ".join(words[: rng.randint(6, 12)]).capitalize() + rng.choice("...?!")


def prose(rng: random.Random, sentences: int) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def found(rows: Sequence[Conversation | Pair]) -> dict[int, tuple[str, int]]:
    """How each repeated row repeats which one before it."""
    matches = {}
    with closing(Duplicates()) as duplicates:
        for number, row in enumerate(rows):
            row = row if isinstance(row, Conversation) else conversation(*row)
            if (first := duplicates.add(row)) is not None:
                matches[number] = "exact", first
        return matches | {m[0].later: (m[0].kind, m[0].earlier) for m in duplicates.near()}


def slipped(word: str) -> str:
    # Another number would be another row.
    is_short = word[0].isdigit() or len(word) < 4
    return word if is_short else word[:-3] + word[-2] + word[-3] + word[-1]


def with_words(change: Callable[[str, random.Random], str]) -> Edit:
    def edit(text: str, rng: random.Random) -> str:
        parts = text.split()
        for place in rng.sample(range(len(parts)), rng.randint(1, 3)):
            parts[place] = change(parts[place], rng)
        return " ".join(parts)

    return edit


def reordered(text: str, rng: random.Random) -> str:
    first, second, *rest = re.split(r"(?<=[.?!]) ", text)
    return " ".join([second, first, *rest])


EDITS: list[Edit] = [
    with_words(lambda _, rng: rng.choice(VOCABULARY)),
    typos := with_words(lambda word, _: slipped(word)),
    with_words(lambda word, _: f"{word} really"),
    lambda text, rng: re.sub(r"[.?!]", lambda _: rng.choice([" ;", "", "!"]), text),
    lambda text, rng: rng.choice([text.upper(), text.title(), text.replace(" ", "  ")]),
    reordered,
    lambda text, rng: f"{text} One more thing at the end.",
]


def test_planted_pairs_are_found_and_nothing_else() -> None:
    rng = random.Random(7)
    rows = [(prose(rng, rng.randint(1, 3)), prose(rng, rng.randint(3, 8))) for _ in range(19_500)]
    planted = rng.sample(range(len(rows)), 500)
    for number, original in enumerate(planted):
        question, answer = rows[original]
        edit = EDITS[number % len(EDITS)]
        rows.append((question if number % 3 else typos(question, rng), edit(answer, rng)))
    matches = found(rows)
    right = sum(matches.get(19_500 + n, ("", -1))[1] == first for n, first in enumerate(planted))
    print(f"found {right} of 500, {len(matches) - right} others")
    assert right >= 495
    assert len(matches) - right <= 2


def test_kinds_of_repeats() -> None:
    rng = random.Random(1)
    question, answer = prose(rng, 3), prose(rng, 3)
    called, recalled = (
        conversation(question, "", tool_calls=({"type": "function", "function": function},))
        for function in ({"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}})
    )
    rows = [
        (question, answer),
        (question, answer),
        (question.upper(), answer),
        (question, answer.replace(answer.split()[3], "edited")),
        ("Hello there", "Hi!"),
        ("hello  there", "hi!"),
        ("Hello there", "Ho!"),
        called,
        recalled,
        called,
    ]
    assert found(rows) == {
        1: ("exact", 0), 2: ("spelling", 0), 3: ("near", 0), 5: ("exact", 4), 9: ("exact", 7),
    }  # fmt: skip


def test_another_answer_number_or_name_is_another_row() -> None:
    story = prose(random.Random(2), 6)
    rows = [
        (story + " How many are left of 12?", "There are 5 of them left in the end."),
        (story + " How many are left of 30?", "There are 5 of them left in the end."),
        (story + " How many are left of 30?", "There are 7 of them left in the end."),
        (story + " Is it so?", "yes"),
        (story + " Is it so?", "no"),
        (story + " Which is it?", "lost_or_stolen_card"),
        (story + " Which is it?", "lost_or_stolen_phone"),
        ("What is the capital of France?", "The capital is a big city there."),
        ("What is the capital of Spain?", "The capital is a big city there."),
    ]
    assert found(rows) == {}


def test_what_many_rows_share_is_their_template() -> None:
    rng = random.Random(3)
    task = prose(rng, 8)
    rows = [(f"{task}\n{prose(rng, 1)}", "positive") for _ in range(40)]
    rows.append((rows[17][0].replace(rows[17][0].split()[3], "edited"), "positive"))
    assert found(rows) == {40: ("near", 17)}


def test_scripts_without_spaces_are_compared_by_character() -> None:
    rows = [
        ("请问一下，长江有多长？它从哪里流到哪里？", "长江全长约六千三百公里，从青海流到上海。"),
        ("请问一下，长江有多长？它从哪里流到哪里？", "长江全长大约六千三百公里，从青海流到上海"),
        ("请问一下，黄河有什么特点？为什么叫这个名字？", "黄河含沙量很大，因此水是黄色的。"),
    ]
    assert found(rows) == {1: ("near", 0)}


def test_texts_without_words_and_look_alikes_without_end() -> None:
    signs = [("?" * n, "! " * n) for n in range(30, 90)]
    asked = "The same question as ever, word by word, once more?"
    rows = [*signs, *((asked, f"Yes {'x' * n}.") for n in range(900))]
    assert all(later >= len(signs) for later in found(rows))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"), ("alpaca_test.json", "test"), ("dev/part1.jsonl", "valid"),
        ("validation-00000-of-00002.parquet", "valid"), ("trainee.jsonl", None),
        ("test_data/rows.jsonl", None), ("latest.jsonl", None),
    ],
)  # fmt: skip
def test_names_tell_splits(path: str, split: str | None) -> None:
    assert split_of(Path("/data") / path) == split
