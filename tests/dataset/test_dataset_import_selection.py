"""Samples, splits and mixtures: stable, grouped, within their shares."""

import tracemalloc
from array import array
from collections import Counter
from random import Random

import pytest
from data_command import SPLITS, asked, said

from mlx_itune.dataset.importing.select import Splitter, drawn, mix, parse_shares, position, quotas
from mlx_itune.kit.errors import ItuneError


def test_a_sample_is_the_same_whatever_the_order(run):
    rows = asked([*range(300), *range(40)])
    one = run.write("one.jsonl", rows)
    run.write("two/b.jsonl", rows[:123])
    run.write("two/a.jsonl", rows[:122:-1])
    for out, source, seed in (("1", one, 7), ("2", run.home / "two", 7), ("3", one, 8)):
        run("import", source, "--sample", 50, "--seed", seed, out=out)
    first, shuffled, other = (Counter(map(said, run.rows(out))) for out in "123")
    assert first.total() == 50 and first == shuffled != other
    made = run("import", one, "--sample", 1000, out="4")
    assert made["splits"] == {"train": 340}
    assert made["notes"] == ["340 rows, not 1,000: there are no more"]


def test_added_rows_move_no_row_between_splits(run):
    rows = asked(range(1000))
    before = run.write("before.jsonl", rows)
    after = run.write("after.jsonl", [*asked(range(5000, 5300)), *reversed(rows)])
    made = run("import", before, "--split", "0.8/0.1/0.1", out="1")
    run("import", after, "--split", "80/10/10", out="2")
    old, new = run.sides("1"), run.sides("2")
    assert (len(old), len(new)) == (1000, 1300)
    assert all(new[row] == split for row, split in old.items())
    assert all(60 <= made["splits"][split] <= 140 for split in ("valid", "test"))


def test_equal_rows_and_groups_stay_on_one_side(run):
    numbers = enumerate(asked([*range(200), *range(50)]))
    source = run.write("rows.jsonl", [{**row, "session": f"s{n // 5}"} for n, row in numbers])
    spelled = [
        {"question": f"Name a {('hue', ' HUE')[n % 2]} {n // 4}", "answer": f"{n}"}
        for n in range(120)
    ]
    asked_again = run.write("spelled.jsonl", spelled)
    flags = ("--split", "0.6/0.2/0.2")
    run("import", source, *flags, out="1")
    run("import", source, *flags, "--group-by", "session", out="2")
    run("import", asked_again, *flags, "--group-by", "first-turn", out="3")
    # Copies tie group s0 to s40 and so on, so these go together too.
    keys = {
        "1": [said],
        "2": [said, lambda row: row["session"]],
        "3": [lambda row: " ".join(said(row).split("|")[0].lower().split())],
    }
    for out, named in keys.items():
        found = {}
        for split in SPLITS:
            for row in run.rows(out, split):
                for key in named:
                    found.setdefault(key(row), set()).add(split)
        assert all(len(splits) == 1 for splits in found.values())
        assert set().union(*found.values()) == set(SPLITS)


def test_small_data_fills_every_split_and_stratify_gives_each_source_its_rows(run):
    few = run.write("few.jsonl", asked(range(3)))
    made = run("import", few, "--split", "0.9/0.05/0.05", out="few")
    assert made["splits"] == dict.fromkeys(SPLITS, 1)
    assert any("moved so that no split is empty" in note for note in made["notes"])
    big = run.write("big.jsonl", asked(range(1000)))
    small = run.write("small.jsonl", asked(range(5000, 5010)))
    flags = ("--split", "0.9/0.05/0.05", "--stratify", "source")
    strata = run("import", big, small, *flags, out="data")["split"]["strata"]
    assert strata.keys() == {"big", "small"}
    assert all(strata["small"][split] >= 1 for split in SPLITS)
    assert strata["big"]["test"] == pytest.approx(50, abs=25)


def test_files_named_after_splits_keep_them(run):
    for name, numbers in {"train": range(20), "validation": range(20, 25), "test": [25]}.items():
        test = run.write(f"quiz/{name}.jsonl", asked(numbers))
    made = run("import", run.home / "quiz", out="data")
    assert made["splits"] == {"train": 20, "valid": 5, "test": 1}
    assert {row["source"] for row in run.rows("data")} == {"quiz"}
    assert run("import", test, out="alone")["splits"] == {"train": 1}


def test_caps_and_weights_are_the_shares_that_come_out(run):
    wanted = {"flan": 0.4, "t0": 0.35, "niv2": 0.2, "cot": 0.05}
    sizes = {"flan": 300, "t0": 300, "niv2": 300, "cot": 30}
    files = [
        run.write(f"{name}.jsonl", asked(range(n * 1000, n * 1000 + size)))
        for n, (name, size) in enumerate(sizes.items())
    ]
    flags = ("--weights", ",".join(f"{name}={share}" for name, share in wanted.items()))
    made = run("import", *files, *flags, "--sample", 200, out="data")
    assert made["splits"] == {"train": 200}
    assert made["mix"]["achieved"] == pytest.approx(wanted, abs=1e-9)
    # Without a size, as many rows as the shares allow: 30 of the smallest are a twentieth.
    assert run("import", *files, *flags, out="all")["splits"] == {"train": 600}
    assert run("import", *files, "--cap", 60, out="capped")["splits"] == {"train": 210}
    described = run.record("capped")["mix"]
    assert described["requested"] == pytest.approx(described["achieved"])


def test_shares_follow_caps_and_weights_and_quotas_add_up():
    capped = mix({"big": 30_000, "middle": 5_000, "small": 500}, cap=3_000)
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


def test_what_is_no_mixture_is_refused():
    for sizes, weights, told in (
        ({"a": 0, "b": 0}, None, "no rows"),
        ({"a": 5}, {"a": -0.5}, "not a finite number >= 0"),
        ({"a": 5}, {"a": float("nan")}, "not a finite number >= 0"),
        ({"a": 5}, {"a": 0.0}, "the weights sum to 0"),
        ({"a": 5, "b": 0}, {"b": 1.0}, "no row"),
    ):
        with pytest.raises(ItuneError, match=told):
            mix(sizes, weights=weights)


def test_a_sample_is_drawn_by_content_and_copy():
    random = Random(5)
    contents = [random.choice((1, 2, 3, random.getrandbits(64))) for _ in range(1000)]
    smaller = Counter()
    for wanted in (0, 1, 17, 500, 999, 1000, 2000):
        taken = drawn(array("Q", contents), wanted, 3)
        assert taken.total() == min(wanted, 1000) and taken <= Counter(contents)
        shuffled = random.sample(contents, len(contents))
        assert drawn(array("Q", shuffled), wanted, 3) == taken and smaller <= taken
        smaller = taken
        # A row with a third of all copies gets about a third of the sample.
        if wanted == 500:
            assert all(90 < taken[content] < 160 for content in (1, 2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_nobody_else_moves_when_an_empty_split_is_filled(seed):
    places = [position(f"{n}".encode(), seed) for n in range(5)]
    splitter = Splitter(parse_shares("0.9/0.05/0.05"))
    before = {place: splitter.choose(place) for place in places}
    splitter.fill()
    after = {place: splitter.choose(place) for place in places}
    assert set(after.values()) == set(SPLITS)
    assert {place for place in places if before[place] != after[place]} == splitter.moved.keys()
    assert len(splitter.moved) == 3 - len(set(before.values()))


def test_memory_does_not_grow_with_the_file(run):
    """Peak of an import of 1.2 MB against one of 0.15 MB, the first time aside."""
    flags = ("--split", "90/5/5", "--group-by", "first-turn", "--sample", 300)
    peaks = []
    for rows in (300, 300, 2_400):
        long = ({"question": f"{n} {'why ' * 60}", "answer": "so " * 80} for n in range(rows))
        source = run.write("rows.jsonl", long)
        tracemalloc.start()
        run("import", source, *flags, out=f"out{len(peaks)}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 0.6e6
