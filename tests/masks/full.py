"""The whole comparison: every family, both real tokenizers and the starter's."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from masks.agreement import Tally, compare, text_problems
from masks.families import FAMILIES
from masks.vocabularies import missing


def main() -> int:
    options = _options()
    total, started = Tally(), time.monotonic()
    for base in options.tokenizers.split(","):
        reason = missing(base)
        if reason:
            print(f"{base}: left out, {reason}")
            continue
        for name in options.families.split(",") if options.families else FAMILIES:
            tally, seconds = _one(base, name, options)
            total.add(tally)
            print(
                f"{base:14} {name:16} rows {tally.rows:6} turns {tally.turns:6} tokens"
                f" {tally.tokens:9} learned {tally.learned:8} refused {tally.refused:5}"
                f" apart {tally.apart:5} wrong {len(tally.faults):4}  {seconds:6.1f} s",
                flush=True,
            )
            if tally.faults:
                print(tally.told(options.show), flush=True)
    print(
        f"{total.rows} conversations, {total.turns} learned turns, {total.tokens} tokens,"
        f" {len(total.faults)} wrong, {time.monotonic() - started:.0f} s"
    )
    return 1 if total.faults else 0


def _one(base: str, name: str, options: argparse.Namespace) -> tuple[Tally, float]:
    family, started = FAMILIES[name], time.monotonic()
    tally = compare(base, family, options.count, seed=options.seed)
    hostile = options.count // 5 if options.hostile is None else options.hostile
    tally.add(compare(base, family, hostile, seed=options.seed, hostile=True))
    for problem in text_problems(base, family, options.count // 20, seed=options.seed):
        raise SystemExit(f"the oracle's own text is wrong: {problem}")
    return tally, time.monotonic() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="conversations per family")
    parser.add_argument("--hostile", type=int, help="hostile ones besides (default: a fifth)")
    parser.add_argument("--families", default="", help="comma-separated; all unless given")
    parser.add_argument("--tokenizers", default="llama2,llama3,starter")
    parser.add_argument("--show", type=int, default=3, help="disagreements to print per family")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
