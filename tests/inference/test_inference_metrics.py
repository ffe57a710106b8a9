"""Exact match and token-F1."""

from __future__ import annotations

import pytest

from mlx_itune.inference.evaluate import exact_match, token_f1


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
    # Two of three words shared: precision 2/3, recall 2/4.
    assert token_f1("take zolpidem daily", "Zolpidem, take at night") == pytest.approx(4 / 7)
    assert token_f1("a a b", "a b b") == pytest.approx(2 / 3)
    assert token_f1("", "") == 1
    assert token_f1("", "x") == 0
    assert token_f1("x", "...") == 0
