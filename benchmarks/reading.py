"""Reading speed and memory: bytes of each kind of file -> conversations, on one core.

usage: python benchmarks/reading.py [--rows 50000] [--rounds 5] [--big GB] [--json]

Rows are about 1 KB of invented words. `floor` is orjson.loads of every line and nothing else. Times
are of this process's CPU, the best of the rounds. `--big` also writes one JSON array and one file
of lines of that size and reads each in a process of its own, whose peak memory it reports.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.dataset.reading import read_records
from mlx_itune.dataset.sources import read_rows

Row = dict[str, Any]
# On Linux ru_maxrss starts at what the parent had; VmHWM is of the process alone.
_PEAK = """
import pathlib, resource, sys, time
from mlx_itune.dataset.sources import read_rows

def peak():
    if sys.platform == "linux":
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

began, before = time.process_time(), peak()
rows = sum(1 for _ in read_rows(pathlib.Path(sys.argv[1])))
print(rows, before, peak(), time.process_time() - began)
"""


def words(random_: random.Random, length: int, known: list[str]) -> str:
    """So many characters of text, with the marks that text has."""
    text = ""
    while len(text) < length:
        text += random_.choice(known) + random_.choice([" ", " ", " ", ", ", ". ", ": ", "\n"])
    return text.strip()


def generated(count: int) -> dict[str, list[Row]]:
    """Rows of about 1 KB in the commonest formats."""
    random_ = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = ["".join(random_.choices(letters, k=random_.randint(2, 9))) for _ in range(3000)]

    def text(length: int) -> str:
        return words(random_, length, known)

    roles, speakers = ("user", "assistant"), ("human", "gpt")
    return {
        "chat": [
            {"messages": [{"role": role, "content": text(220)} for role in roles * 2]}
            for _ in range(count)
        ],
        "sharegpt": [
            {"id": f"r{n}", "conversations": [{"from": s, "value": text(480)} for s in speakers]}
            for n in range(count)
        ],
        "alpaca": [
            {"instruction": text(200), "input": text(200) if n % 2 else "", "output": text(550)}
            for n in range(count)
        ],
    }  # fmt: skip


def written(folder: Path, rows: dict[str, list[Row]]) -> list[Path]:
    """The rows as files of every kind."""
    files = []
    for name, listed in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in listed))
        files.append(path)
    path = folder / "chat.json"
    path.write_text(json.dumps(rows["chat"]))
    files.append(path)
    path = folder / "chat-indented.json"
    path.write_text(json.dumps(rows["chat"], indent=2))
    files.append(path)
    path = folder / "chat.jsonl.gz"
    path.write_bytes(gzip.compress((folder / "chat.jsonl").read_bytes(), 6))
    files.append(path)
    path = folder / "alpaca.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["instruction", "input", "output"])
        table.writeheader()
        table.writerows(rows["alpaca"])
    files.append(path)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return files
    path = folder / "chat.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows["chat"]), path)
    return [*files, path]


def floor(path: Path) -> Iterator[Any]:
    """Every line through orjson and no more."""
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def best_s(read: Callable[[Path], Iterator[Any]], path: Path, rounds: int) -> tuple[int, float]:
    """Rows, and CPU seconds of the quickest round."""
    best, count = float("inf"), 0
    for _ in range(rounds):
        began = time.process_time()
        count = sum(1 for _ in read(path))
        best = min(best, time.process_time() - began)
    return count, best


def big(folder: Path, size: int, rows: list[Row]) -> list[dict[str, Any]]:
    """Rows, CPU seconds and peak memory for a file of `size` bytes, as lines and as an array."""
    results = []
    for kind in ("lines", "array"):
        path = folder / ("big.jsonl" if kind == "lines" else "big.json")
        joint = b"\n" if kind == "lines" else b", "
        block = joint.join(map(orjson.dumps, rows))
        with path.open("wb") as file:
            file.write(b"[" * (kind == "array") + block)
            for _ in range(size // (len(block) + len(joint))):
                file.write(joint + block)
            file.write(b"]" * (kind == "array"))
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True
        )
        count, before, peak, spent_s = map(float, done.stdout.split())
        results.append(
            {
                "kind": kind,
                "bytes": path.stat().st_size,
                "rows": int(count),
                "cpu_s": spent_s,
                "start_memory_bytes": int(before),
                "peak_memory_bytes": int(peak),
            }
        )
        path.unlink()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--big", type=float, default=0, metavar="GB")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    large: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mlx-itune-bench-") as folder:
        rows = generated(args.rows)
        for path in written(Path(folder), rows):
            ways: dict[str, Callable[[Path], Iterator[Any]]] = {
                "read_records": read_records,
                "read_rows": read_rows,
            }
            if path.suffix == ".jsonl":
                ways = {"floor": floor, **ways}
            for name, read in ways.items():
                count, spent_s = best_s(read, path, args.rounds)
                size = path.stat().st_size
                results.append(
                    {
                        "file": path.name,
                        "way": name,
                        "rows": count,
                        "microseconds_per_row": spent_s / count * 1e6,
                        "megabytes_per_second": size / spent_s / 1e6,
                    }
                )
        if args.big:
            large = big(Path(folder), int(args.big * 1e9), rows["chat"][:1000])
    if args.json:
        print(json.dumps({"speed": results, "big": large}))
        return
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.platform()}, Python {platform.python_version()}, load {load}")
    for result in results:
        print(
            f"{result['file']:20} {result['way']:12} {result['microseconds_per_row']:7.2f} us/row "
            f"{result['megabytes_per_second']:6.0f} MB/s"
        )
    for result in large:
        print(
            f"{result['bytes'] / 1e9:.2f} GB of {result['kind']}: {result['rows']:,} rows, "
            f"{result['cpu_s']:.0f} s, peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB "
            f"({result['start_memory_bytes'] / 1e6:.0f} before)"
        )


if __name__ == "__main__":
    main()
