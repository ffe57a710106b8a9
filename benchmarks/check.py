"""How fast `data check` is: MB/s of 1 KB chat rows on one core, split by stage.

    taskset -c 1 python benchmarks/check.py --megabytes 60

The rows are invented: words by a Zipf law over a vocabulary of tens of thousands, sentences of
varying length, some numbers, code and names; a share of them is planted duplicates, near
duplicates, refusals and leaked rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from mlx_itune.dataset.checking.check import Check
from mlx_itune.dataset.checking.lints import find_lints, load_lints
from mlx_itune.dataset.checking.near_duplicates import Duplicates
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.sources import read_rows

_ROW_BYTES = 1000
_SYLLABLES = "ta re mo li san ver con dis pro ne ka tion ment ing er al is un de por lo ga".split()
_COMMON = (
    "the of and to a in is that it for as was with be by on not he his but at are this have from or"
    " had an they which one you were all her she there would their we him been has when who will no"
    " more if out so what up can said about other into than its time only could new them man some"
).split()


def vocabulary(rng: random.Random, size: int) -> list[str]:
    """Common English words, then invented ones that get longer."""
    made: dict[str, None] = dict.fromkeys(_COMMON)
    while len(made) < size:
        made["".join(rng.choices(_SYLLABLES, k=rng.choice((2, 2, 2, 3, 3, 4))))] = None
    return list(made)


class Writer:
    """Invents chat rows of about one kilobyte."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.words = vocabulary(self.rng, 40_000)
        self.weights = list(itertools.accumulate(1 / (n + 2.7) for n in range(len(self.words))))

    def sentence(self) -> str:
        rng = self.rng
        words = rng.choices(self.words, cum_weights=self.weights, k=rng.randint(5, 24))
        if rng.random() < 0.2:
            words[rng.randrange(len(words))] = str(rng.randint(2, 3000))
        if rng.random() < 0.3:
            words[len(words) // 2] += ","
        return " ".join(words).capitalize() + rng.choice((".", ".", ".", "?", "!"))

    def text(self, size: int) -> str:
        parts: list[str] = []
        while size > 0:
            parts.append(self.sentence())
            size -= len(parts[-1]) + 1
        return " ".join(parts)

    def row(self) -> list[str]:
        if self.rng.random() < 0.3:
            return [self.text(60), self.text(250), self.text(60), self.text(380)]
        return [self.text(180), self.text(620)]

    def rows(self, count: int) -> Iterator[list[str]]:
        kept: list[list[str]] = []
        for number in range(count):
            turns = self.row()
            chance = self.rng.random()
            if kept and chance < 0.01:
                turns = list(self.rng.choice(kept))
            elif kept and chance < 0.02:
                turns = list(self.rng.choice(kept))
                words = turns[-1].split()
                words[self.rng.randrange(len(words))] = self.rng.choice(self.words)
                turns[-1] = " ".join(words)
            elif chance < 0.025:
                turns[-1] = "I'm sorry, but as an AI language model, I cannot do that. " + turns[-1]
            if number % 50 == 0:
                kept.append(turns)
            yield turns


def write(folder: Path, megabytes: int, seed: int) -> list[Path]:
    """train.jsonl and test.jsonl of `megabytes` in all."""
    writer = Writer(seed)
    paths = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
    files = {name: path.open("w", encoding="utf-8") for name, path in paths.items()}
    for number, turns in enumerate(writer.rows(megabytes * 1_000_000 // _ROW_BYTES)):
        messages = [{"role": "system", "content": "You are a helpful assistant."}]
        for place, text in enumerate(turns):
            messages.append({"role": ("user", "assistant")[place % 2], "content": text})
        name = "test" if number % 20 == 19 else "train"
        files[name].write(json.dumps({"messages": messages}) + "\n")
    for file in files.values():
        file.close()
    return list(paths.values())


def best(runs: int, work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), given.megabytes, given.seed)
        size = sum(path.stat().st_size for path in paths)
        report(paths, size, given.runs)


def report(paths: list[Path], size: int, runs: int) -> None:
    rows = [row for path in paths for row in read_rows(path) if isinstance(row, Conversation)]
    lints = load_lints()

    def read() -> None:
        for path in paths:
            for _ in read_rows(path):
                pass

    def screened() -> None:
        for row in rows:
            list(find_lints(lints, row.turns))

    def compared() -> None:
        with closing(Duplicates()) as duplicates:
            for row in rows:
                duplicates.add(row)
            list(duplicates.near())

    whole = Check(paths)
    faults = list(whole)
    total = best(runs, lambda: list(Check(paths)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    print(
        f"{whole.rows:,} rows, {size / 1e6:,.1f} MB, {len(faults):,} faults: {dict(whole.counts)}"
    )
    stages = {"read": read, "lints": screened, "duplicates": compared}
    for name, spent in {
        **{n: best(runs, work) for n, work in stages.items()},
        "all": total,
    }.items():
        print(f"{name:<12}{1e6 * spent / whole.rows:6.2f} us/row")
    print(f"{size / 1e6 / total:.1f} MB/s, peak memory {peak_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
