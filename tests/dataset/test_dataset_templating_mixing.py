"""Mixtures: shares that can be checked by drawing, quotas that add up, faults that are told."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mlx_itune.dataset.templating.mixing import mix, pick, quotas
from mlx_itune.kit.errors import ItuneError

SIZES = {"big": 30_000, "middle": 5_000, "small": 500}
FLAN = {"flan2021": 0.40, "t0": 0.32, "niv2": 0.20, "cot": 0.05, "dialog": 0.03}


@pytest.mark.parametrize("seed", range(5))
def test_a_capped_mixture_is_sampled_in_proportion(seed: int) -> None:
    shares = mix(SIZES, cap=3_000)
    drawn = Counter(pick(shares, n, seed) for n in range(20_000))
    for name, wanted in {"big": 46.2, "middle": 46.2, "small": 7.7}.items():
        assert abs(100 * shares[name] - wanted) < 0.06
        assert abs(100 * drawn[name] / 20_000 - wanted) < 1


@pytest.mark.parametrize("seed", range(5))
def test_explicit_weights_win(seed: int) -> None:
    shares = mix(dict.fromkeys(FLAN, 10), cap=1, weights=FLAN)
    drawn = Counter(pick(shares, n, seed) for n in range(20_000))
    for name, weight in FLAN.items():
        assert shares[name] == pytest.approx(weight)
        assert abs(drawn[name] / 20_000 - weight) < 0.01


def test_without_a_cap_every_row_weighs_the_same() -> None:
    assert mix({"a": 3, "b": 1}) == {"a": 0.75, "b": 0.25}
    assert mix({"a": 3, "b": 1, "c": 0}, cap=1) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_weights_are_relative_and_leave_out_what_they_do_not_name() -> None:
    shares = mix({"a": 5, "b": 5, "c": 5}, weights={"c": 6, "a": 2})
    assert shares == {"a": 0.25, "b": 0.0, "c": 0.75}
    assert {pick(shares, n, 0) for n in range(1_000)} == {"a", "c"}
    assert mix({"a": 1, "b": 1}, weights={"a": 1e308, "b": 1e308}) == {"a": 0.5, "b": 0.5}


def test_quotas_add_up_and_are_within_one_of_exact() -> None:
    chance = random.Random(2)
    for _ in range(300):
        sizes = {str(n): chance.randint(1, 10**6) for n in range(chance.randint(1, 12))}
        shares, total = mix(sizes), chance.choice([0, 1, 7, 1_000, 123_457, 10**17])
        whole = quotas(shares, total)
        assert sum(whole.values()) == total
        if total < 10**9:
            assert all(abs(whole[name] - shares[name] * total) < 1 for name in sizes)
    assert quotas(mix(SIZES, cap=3_000), 13) == {"big": 6, "middle": 6, "small": 1}


def test_a_draw_depends_on_its_arguments_only() -> None:
    shares = mix(SIZES)
    once = [pick(shares, n, 1) for n in range(500)]
    assert [pick(shares, n, 1) for n in reversed(range(500))] == once[::-1]
    assert [pick(shares, n, 2) for n in range(500)] != once


@pytest.mark.parametrize(
    ("sizes", "cap", "weights", "said"),
    [
        ({}, None, None, "nothing to mix"),
        ({"a": -1}, None, None, "cannot have -1 rows"),
        ({"a": 0, "b": 0}, None, None, "no source of the mixture has a row"),
        ({"a": 5}, 0, None, "a cap of 0 rows"),
        ({"a": 5}, None, {"a": -0.5}, "not a finite number >= 0"),
        ({"a": 5}, None, {"a": float("nan")}, "not a finite number >= 0"),
        ({"a": 5}, None, {"a": float("inf")}, "not a finite number >= 0"),
        ({"a": 5}, None, {"a": 0}, "the weights sum to 0"),
        ({"alpha": 5}, None, {"alpa": 1}, "did you mean alpha?"),
        ({"a": 5, "b": 0}, None, {"b": 1}, "no row"),
    ],
)
def test_what_is_no_mixture_is_refused(
    sizes: dict[str, int], cap: int | None, weights: dict[str, float] | None, said: str
) -> None:
    with pytest.raises(ItuneError) as refused:
        mix(sizes, cap=cap, weights=weights)
    assert said in str(refused.value)


def test_quotas_refuse_a_negative_total() -> None:
    with pytest.raises(ItuneError):
        quotas({"a": 1.0}, -1)
