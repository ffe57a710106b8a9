"""The whole comparison: every family, both real tokenizers and the starter's."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from masks.agreement import Tally, compare
from masks.families import FAMILIES
from masks.vocabularies import missing


def main() -> int:
    """Compare; 1 if any conversation is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="conversations per family")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    parser.add_argument("--tokenizers", default="llama2,llama3,starter")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    total, started = Tally(), time.monotonic()
    for base in options.tokenizers.split(","):
        if reason := missing(base):
            print(f"{base}: left out, {reason}")
            continue
        for name in options.families.split(","):
            begun = time.monotonic()
            tally = compare(base, FAMILIES[name], options.count, seed=options.seed)
            hostile = options.count // 5
            tally.add(compare(base, FAMILIES[name], hostile, seed=options.seed, hostile=True))
            total.add(tally)
            print(
                f"{base:14} {name:16} rows {tally.rows:6} turns {tally.turns:6} tokens"
                f" {tally.tokens:9} learned {tally.learned:8} refused {tally.refused:5}"
                f" apart {tally.apart:5} wrong {len(tally.faults):4}"
                f"  {time.monotonic() - begun:6.1f} s",
                flush=True,
            )
            if tally.faults:
                print(tally.told(), flush=True)
    print(
        f"{total.rows} conversations, {total.turns} learned turns, {total.tokens} tokens,"
        f" {len(total.faults)} wrong, {time.monotonic() - started:.0f} s"
    )
    return 1 if total.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
