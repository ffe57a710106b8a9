"""Repeated rows: what is found of planted copies, and what is left alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mlx_itune.dataset.checking import columns as columns_module
from mlx_itune.dataset.checking.chunk import split_words
from mlx_itune.dataset.checking.columns import Columns
from mlx_itune.dataset.checking.duplicates import Duplicates, Match
from mlx_itune.dataset.checking.gather import chunks
from mlx_itune.dataset.checking.leakage import split_of
from mlx_itune.dataset.checking.minhash import signatures
from mlx_itune.dataset.checking.minhash import similarity as estimated
from mlx_itune.dataset.conversation import Conversation, Turn

VOCABULARY = [
    a + b
    for a in "ba ce di fo gu ha ke li mo nu pa re si to vu wa".split()
    for b in "ndo rle sti mba ck lt rn sk pp gle tten ving".split()
]


def conversation(question: str, answer: str, number: int = 0) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)), f"rows:{number}")


def prose(rng: random.Random, sentences: int) -> str:
    return " ".join(
        " ".join(rng.choices(VOCABULARY, k=rng.randint(6, 14))).capitalize() + "."
        for _ in range(sentences)
    )


def found(rows: Sequence[Conversation], **options: float) -> list[Match]:
    """The best match of every repeated row."""

    def fetch(numbers: Sequence[int]) -> Iterable[tuple[int, Conversation]]:
        return ((number, rows[number]) for number in numbers)

    with Duplicates(**options) as duplicates:  # type: ignore[arg-type]
        for chunk in chunks(rows):
            duplicates.add(chunk.exact, chunk.words)
        return [matches[0] for matches in duplicates.matches(fetch)]


def edited(text: str, rng: random.Random, words: int) -> str:
    parts = text.split()
    for place in rng.sample(range(len(parts)), words):
        parts[place] = "edited" + parts[place]
    return " ".join(parts)


def reordered(text: str, rng: random.Random) -> str:
    parts = re.split(r"(?<=\.) ", text)
    place = rng.randrange(len(parts) - 1)
    parts[place], parts[place + 1] = parts[place + 1], parts[place]
    return " ".join(parts)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda text, rng: text.upper(), 1.0),
        (lambda text, rng: re.sub(r"[.,]", " ;", text).replace(" ", "  "), 1.0),
        (lambda text, rng: edited(text, rng, 1), 0.99),
        (lambda text, rng: edited(text, rng, 3), 0.97),
        (reordered, 0.99),
        (lambda text, rng: text + " One more thing at the end.", 0.99),
    ],
    ids=["case", "punctuation", "one word", "three words", "reordered", "longer"],
)
def test_planted_copies_are_found_and_nothing_else(
    change: Callable[[str, random.Random], str], least: float
) -> None:
    rng = random.Random(7)
    originals = [(prose(rng, 3), prose(rng, 6)) for _ in range(600)]
    planted = rng.sample(range(600), 200)
    rows = [*originals, *((originals[n][0], change(originals[n][1], rng)) for n in planted)]
    matches = found([conversation(*row) for row in rows])
    right = [m for m in matches if m.later >= 600 and m.earlier == planted[m.later - 600]]
    recall, precision = len(right) / 200, len(right) / len(matches)
    print(f"recall {recall:.3f} precision {precision:.3f}")
    assert recall >= least
    assert precision == 1.0


def test_kinds_of_repeats() -> None:
    rng = random.Random(1)
    question, answer = prose(rng, 3), prose(rng, 3)
    rows = [
        conversation(question, answer),
        conversation(question, answer),
        conversation(question.upper(), answer),
        conversation(question, edited(answer, rng, 1)),
        conversation("Hello there", "Hi!"),
        conversation("hello  there", "hi!"),
        conversation("Hello there", "Ho!"),
    ]
    kinds = {match.later: (match.kind, match.earlier) for match in found(rows)}
    assert kinds == {1: ("exact", 0), 2: ("spelling", 0), 3: ("near", 0), 5: ("exact", 4)}


def test_another_answer_number_or_name_is_another_row() -> None:
    rng = random.Random(2)
    story = prose(rng, 6)
    rows = [
        conversation(story + " How many are left of 12?", "There are 5 of them left in the end."),
        conversation(story + " How many are left of 30?", "There are 5 of them left in the end."),
        conversation(story + " Is it so?", "yes"),
        conversation(story + " Is it so?", "no"),
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


def test_other_scripts_are_read_as_words() -> None:
    def words(text: str) -> list[int]:
        return split_words([text.encode()]).hashes.tolist()

    assert words("ÉCOLE Straße ПРИВЕТ Ωμέγα") == words("école, straße — привет «ωμέγα»")
    assert len(words("河流是流动的水")) == 7
    assert words("“Don’t”") == words("don t")
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


def test_words_stay_within_their_row() -> None:
    words = split_words([b"", b"one two", b"three", b"", b"Four,five"])
    assert words.counts.tolist() == [0, 2, 1, 0, 2]
    assert words.rows.tolist() == [1, 1, 2, 4, 4]


def test_estimates_are_close_to_the_real_similarity() -> None:
    rng = random.Random(5)
    errors = []
    for share in (0.5, 0.8, 0.9):
        for _ in range(60):
            a = rng.choices(VOCABULARY, k=120)
            b = [w if rng.random() < share else rng.choice(VOCABULARY) for w in a]
            real = [set(pairwise(x)) for x in (a, b)]
            jaccard = len(real[0] & real[1]) / len(real[0] | real[1])
            made = signatures(split_words([" ".join(a).encode(), " ".join(b).encode()]))
            errors.append(float(estimated(made[:1], made[1:])[0]) - jaccard)
    assert abs(float(np.mean(errors))) < 0.02
    assert float(np.std(errors)) < 0.09


def test_groups_are_the_same_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    values = rng.integers(1, 400, (3000, 2)).astype(np.uint64)

    def groups() -> set[tuple[int, ...]]:
        with Columns(2) as columns:
            for start in range(0, 3000, 700):
                columns.append(values[start : start + 700])
            made = set()
            for members, sizes in columns.groups(1, np.uint64(0xFFFFFFFFFFFFFFFF)):
                made |= {tuple(g.tolist()) for g in np.split(members, np.cumsum(sizes)[:-1])}
            assert (
                columns.pick(0, np.array([3, 3, 2999])).tolist() == values[[3, 3, 2999], 0].tolist()
            )
            return made

    by_value: dict[int, list[int]] = {}
    for row, value in enumerate(values[:, 1].tolist()):
        by_value.setdefault(value, []).append(row)
    expected = {tuple(rows) for rows in by_value.values() if len(rows) > 1}
    assert groups() == expected
    monkeypatch.setattr(columns_module, "_SORT_ROWS", 500)
    monkeypatch.setattr(columns_module, "_BLOCK_ROWS", 300)
    monkeypatch.setattr(columns_module, "_BUFFER_ROWS", 256)
    assert groups() == expected


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
