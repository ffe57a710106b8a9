"""Samples, splits and mixtures: stable, grouped, within their shares."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from import_command import Capture, asked, imported, rows_in, said, sides, write

from mlx_itune.dataset.importing.select import (
    Sampler,
    Splitter,
    mix,
    parse_shares,
    position,
    quotas,
)
from mlx_itune.kit.errors import ItuneError


def test_a_sample_is_the_same_whatever_the_order(capsys: Capture, tmp_path: Path) -> None:
    rows = asked([*range(300), *range(40)])
    one = write(tmp_path / "one.jsonl", rows)
    write(tmp_path / "two" / "b.jsonl", rows[:123])
    write(tmp_path / "two" / "a.jsonl", rows[:122:-1])
    flags = ("--sample", 50, "--seed", 7)
    imported(capsys, tmp_path / "1", one, *flags)
    imported(capsys, tmp_path / "2", tmp_path / "two", *flags)
    first = Counter(map(said, rows_in(tmp_path / "1", "train")))
    assert first.total() == 50
    assert first == Counter(map(said, rows_in(tmp_path / "2", "train")))
    imported(capsys, tmp_path / "3", one, *("--sample", 50, "--seed", 8))
    assert first != Counter(map(said, rows_in(tmp_path / "3", "train")))
    made = imported(capsys, tmp_path / "4", one, "--sample", 1000)
    assert made["splits"] == {"train": 340}
    assert made["notes"] == ["340 rows, not 1,000: there are no more"]


def test_added_rows_move_no_row_between_splits(capsys: Capture, tmp_path: Path) -> None:
    rows = asked(range(1000))
    before = write(tmp_path / "before.jsonl", rows)
    after = write(tmp_path / "after.jsonl", [*asked(range(5000, 5300)), *reversed(rows)])
    flags = ("--split", "0.8/0.1/0.1")
    made = imported(capsys, tmp_path / "1", before, *flags)
    imported(capsys, tmp_path / "2", after, *flags)
    old, new = sides(tmp_path / "1"), sides(tmp_path / "2")
    assert len(old) == 1000
    assert len(new) == 1300
    assert all(new[row] == split for row, split in old.items())
    assert 60 <= made["splits"]["test"] <= 140
    assert 60 <= made["splits"]["valid"] <= 140
    imported(capsys, tmp_path / "3", before, "--split", "80/10/10")
    assert sides(tmp_path / "3") == old


def test_equal_rows_and_groups_stay_on_one_side(capsys: Capture, tmp_path: Path) -> None:
    rows = [
        {**row, "session": f"s{n // 5}"} for n, row in enumerate(asked([*range(200), *range(50)]))
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    flags = ("--split", "0.6/0.2/0.2")
    imported(capsys, tmp_path / "1", source, *flags)
    counted = Counter(
        (said(row), split) for split in ("train", "valid", "test")
        for row in rows_in(tmp_path / "1", split)
    )  # fmt: skip
    assert len({row for row, _ in counted}) == len(counted)
    # Copies tie group s0 to s40 and so on, so these go together too.
    imported(capsys, tmp_path / "2", source, *flags, "--group-by", "session")
    splits_of: dict[str, set[str]] = {}
    for split in ("train", "valid", "test"):
        for row in rows_in(tmp_path / "2", split):
            splits_of.setdefault(row["session"], set()).add(split)
            splits_of.setdefault(said(row), set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set().union(*splits_of.values()) == {"train", "valid", "test"}
    spelled = [
        {"question": f"Name a {'  '[: n % 2]}colour {n // 4}", "answer": f"answer {n}"}
        for n in range(120)
    ]
    source = write(tmp_path / "spelled.jsonl", spelled)
    imported(capsys, tmp_path / "3", source, *flags, "--group-by", "first-turn")
    found: dict[str, set[str]] = {}
    for row, split in sides(tmp_path / "3").items():
        found.setdefault(" ".join(row.split("|")[0].split()), set()).add(split)
    assert len(found) == 30
    assert all(len(splits) == 1 for splits in found.values())


@pytest.mark.parametrize("rows", [3, 7])
def test_small_data_fills_every_split(capsys: Capture, tmp_path: Path, rows: int) -> None:
    source = write(tmp_path / "rows.jsonl", asked(range(rows)))
    made = imported(capsys, tmp_path / "data", source, "--split", "0.9/0.05/0.05")
    assert min(made["splits"].get(name, 0) for name in ("train", "valid", "test")) >= 1
    assert sum(made["splits"].values()) == rows
    assert any("moved so that no split is empty" in note for note in made["notes"])


def test_stratify_gives_each_source_its_rows(capsys: Capture, tmp_path: Path) -> None:
    big = write(tmp_path / "big.jsonl", asked(range(1000)))
    small = write(tmp_path / "small.jsonl", asked(range(5000, 5010)))
    flags = ("--split", "0.9/0.05/0.05", "--stratify", "source")
    made = imported(capsys, tmp_path / "data", big, small, *flags)
    strata = made["split"]["strata"]
    assert strata.keys() == {"big", "small"}
    assert all(strata["small"][split] >= 1 for split in ("train", "valid", "test"))
    assert strata["big"]["test"] == pytest.approx(50, abs=25)


def test_files_named_after_splits_keep_them(capsys: Capture, tmp_path: Path) -> None:
    for name, numbers in {"train": range(20), "validation": range(20, 25), "test": [25]}.items():
        write(tmp_path / "quiz" / f"{name}.jsonl", asked(numbers))
    made = imported(capsys, tmp_path / "data", tmp_path / "quiz")
    assert made["splits"] == {"train": 20, "valid": 5, "test": 1}
    assert {row["source"] for row in rows_in(tmp_path / "data", "train")} == {"quiz"}
    alone = imported(capsys, tmp_path / "alone", tmp_path / "quiz" / "test.jsonl")
    assert alone["splits"] == {"train": 1}


def test_caps_and_weights_are_the_shares_that_come_out(capsys: Capture, tmp_path: Path) -> None:
    wanted = {"flan": 0.4, "t0": 0.35, "niv2": 0.2, "cot": 0.05}
    files = [
        write(tmp_path / f"{name}.jsonl", asked(range(n * 1000, n * 1000 + size)))
        for n, (name, size) in enumerate({"flan": 300, "t0": 300, "niv2": 300, "cot": 30}.items())
    ]
    flags = ("--weights", ",".join(f"{name}={share}" for name, share in wanted.items()))
    made = imported(capsys, tmp_path / "data", *files, *flags, "--sample", 200)
    assert made["splits"] == {"train": 200}
    assert made["mix"]["achieved"] == pytest.approx(wanted, abs=1e-9)
    # Without a size, as many rows as the shares allow: 30 of the smallest are a twentieth.
    assert imported(capsys, tmp_path / "all", *files, *flags)["splits"] == {"train": 600}
    capped = imported(capsys, tmp_path / "capped", *files, "--cap", 60)
    assert capped["splits"] == {"train": 210}
    described = json.loads((tmp_path / "capped" / "dataset.json").read_text())["mix"]
    assert described["requested"] == pytest.approx(described["achieved"])


SIZES = {"big": 30_000, "middle": 5_000, "small": 500}


def test_shares_follow_caps_and_weights_and_quotas_add_up() -> None:
    capped = mix(SIZES, cap=3_000)
    assert [round(100 * share, 1) for share in capped.values()] == [46.2, 46.2, 7.7]
    assert quotas(capped, 13) == {"big": 6, "middle": 6, "small": 1}
    assert mix({"a": 3, "b": 1}) == {"a": 0.75, "b": 0.25}
    assert mix({"a": 5, "b": 5, "c": 5}, weights={"c": 6, "a": 2}) == {"a": 0.25, "b": 0, "c": 0.75}
    assert mix({"a": 1, "b": 1}, weights={"a": 1e308, "b": 1e308}) == {"a": 0.5, "b": 0.5}
    chance = Random(2)
    for _ in range(100):
        shares = mix({str(n): chance.randint(1, 10**6) for n in range(chance.randint(1, 12))})
        total = chance.choice([0, 1, 7, 1_000, 123_457])
        whole = quotas(shares, total)
        assert sum(whole.values()) == total
        assert all(abs(whole[name] - shares[name] * total) < 1 for name in shares)


@pytest.mark.parametrize(
    ("sizes", "weights", "told"),
    [
        ({"a": 0, "b": 0}, None, "no rows"),
        ({"a": 5}, {"a": -0.5}, "not a finite number >= 0"),
        ({"a": 5}, {"a": float("nan")}, "not a finite number >= 0"),
        ({"a": 5}, {"a": 0.0}, "the weights sum to 0"),
        ({"alpha": 5}, {"alpa": 1.0}, "did you mean alpha?"),
        ({"a": 5, "b": 0}, {"b": 1.0}, "no row"),
    ],
)
def test_what_is_no_mixture_is_refused(
    sizes: dict[str, int], weights: dict[str, float] | None, told: str
) -> None:
    with pytest.raises(ItuneError, match=told):
        mix(sizes, weights=weights)


def test_the_sampler_takes_the_lowest_keys_of_content_and_copy() -> None:
    """Against a dictionary of every row, on contents with many copies."""
    random = Random(5)
    contents = [random.choice((1, 2, 3, random.getrandbits(64))) for _ in range(1000)]
    smaller: Counter[int] = Counter()
    for wanted in (0, 1, 17, 500, 999, 1000, 2000):
        sampler = Sampler(3)
        for content in contents:
            sampler.see(content)
        sampler.draw(wanted)
        first = [content for content in contents if sampler.take(content)]
        assert len(first) == min(wanted, 1000)
        sampler.rewind()
        shuffled = random.sample(contents, len(contents))
        again = Counter(content for content in shuffled if sampler.take(content))
        assert again == Counter(first)
        assert smaller <= again
        smaller = again
        # A row with a third of all copies gets about a third of the sample.
        if wanted == 500:
            assert all(90 < again[content] < 160 for content in (1, 2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_nobody_else_moves_when_an_empty_split_is_filled(seed: int) -> None:
    shares = parse_shares("0.9/0.05/0.05")
    places = [position(f"{n}".encode(), seed) for n in range(5)]
    plain = Splitter(shares)
    before = {place: plain.choose(place) for place in places}
    moved = plain.missing()
    filled = Splitter(shares, moved)
    after = {place: filled.choose(place) for place in places}
    assert set(after.values()) == {"train", "valid", "test"}
    assert not filled.missing()
    assert {place for place in places if before[place] != after[place]} == moved.keys()
    assert len(moved) == 3 - len(set(before.values()))


def test_memory_does_not_grow_with_the_file(capsys: Capture, tmp_path: Path) -> None:
    """Peak of an import of 1.2 MB against one of 0.15 MB, the first time aside."""
    flags = ("--split", "90/5/5", "--group-by", "first-turn", "--sample", 300)
    peaks = []
    for rows in (300, 300, 2_400):
        long = ({"question": f"{n} {'why ' * 60}", "answer": "so " * 80} for n in range(rows))
        source = write(tmp_path / "rows.jsonl", long)
        tracemalloc.start()
        imported(capsys, tmp_path / f"out{len(peaks)}", source, *flags)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 0.6e6
