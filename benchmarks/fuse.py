"""Size against fidelity of every way to fuse, and of `mlx_lm.fuse`, on the starter.

    python benchmarks/fuse.py --adapters grid=DIR qalora=DIR lora=DIR --data DIR --out fuse.json

Without --adapters one of each kind is trained first (500 steps, minutes). Measured on rows of the
test split; errors are compensated on rows of the training split.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.export.fusing.fidelity import Reference
from mlx_itune.export.fusing.fuse import fuse
from mlx_itune.export.request import HeldOut, Request
from mlx_itune.inference.evaluate import question
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.opening import Opening, open_model, rows_of
from mlx_itune.inference.scoring import exact_match
from mlx_itune.model.loading import base
from mlx_itune.model.loading.fingerprint import weight_files

MODEL = "starter"
ANSWER_TOKENS = 64
CALIBRATION_ROWS = 128
ON_THE_GRID = [("exact", None), ("float", 16)]
ROUNDED = [(way, bits) for bits in (4, 5, 6, 8) for way in ("plain", "compensated")]
COLUMNS = "adapter", "way", "bits", "MB", "mean KL", "p99", "top-1", "same text", "score", "s"


class Judge:
    """Base + adapter on held-out rows, and what it makes of a fused model."""

    def __init__(self, adapter: Path, data: Path, rows: int) -> None:
        self.reference, self.tokenizer = open_model(Opening(MODEL, adapter))
        held = rows_of(data, "test")[1][:rows]
        self.measured = prepare(held, self.tokenizer).examples
        spare = rows_of(data, "train")[1][:CALIBRATION_ROWS]
        self.calibration = prepare(spare, self.tokenizer).examples
        self.distance = Reference(self.reference.model, self.measured)
        asked = [pair for row in held if (pair := question(row, self.tokenizer))]
        self.prompts = [prompt for prompt, _ in asked]
        self.right = [reference for _, reference in asked]
        self.answers = self._answers(self.reference)
        self.reference_score = self._score(self.answers)

    def of(self, folder: Path) -> dict[str, Any]:
        """Size, fidelity, texts and score of a model directory."""
        loaded = base.load(str(folder))
        found = self.distance.compare(loaded.model)
        answers = self._answers(loaded)
        same = [a == b for a, b in zip(self.answers, answers, strict=True)]
        return {
            "bytes": sum(file.stat().st_size for file in weight_files(folder)),
            "kl_mean": found.kl_mean,
            "kl_p99": found.kl_p99,
            "top1_agreement": found.top1_agreement,
            "tokens": found.tokens,
            "same_text": sum(same) / len(same),
            "score": self._score(answers),
        }

    def _score(self, answers: Sequence[str]) -> float:
        pairs = zip(answers, self.right, strict=True)
        return sum(exact_match(*pair) for pair in pairs) / len(answers)

    def _answers(self, loaded: base.LoadedModel) -> list[str]:
        return Generator(loaded, self.tokenizer).batch(self.prompts, ANSWER_TOKENS)


def fused_by_mlx_lm(adapter: Path, out: Path, *flags: str) -> None:
    """The stock program, as its users call it."""
    source = base.resolve(MODEL)
    paths = ["--model", str(source), "--adapter-path", str(adapter), "--save-path", str(out)]
    command = [sys.executable, "-m", "mlx_lm", "fuse", *paths, *flags]
    subprocess.run(command, check=True, capture_output=True, text=True)


def measure(kind: str, adapter: Path, data: Path, rows: int) -> list[dict[str, Any]]:
    """A row of the table for each way."""
    judge = Judge(adapter, data, rows)
    lines: list[dict[str, Any]] = []

    def add(way: str, bits: int | None, folder: Path, spent_s: float) -> None:
        line = {"adapter": kind, "way": way, "bits": bits, **judge.of(folder), "s": spent_s}
        lines.append({**line, "reference_score": judge.reference_score})
        tell(lines[-1])

    with tempfile.TemporaryDirectory() as made:
        for name, flags in (("mlx_lm.fuse", ()), ("mlx_lm.fuse --dequantize", ("--dequantize",))):
            began = time.monotonic()
            fused_by_mlx_lm(adapter, Path(made) / name, *flags)
            add(name, None, Path(made) / name, time.monotonic() - began)
        grid = kind in ("grid", "qalora")
        for way, bits in ON_THE_GRID if grid else [*ROUNDED, ("float", 16)]:
            out = Path(made) / f"{way}-{bits}"
            began = time.monotonic()
            # What it is like is measured below, as of mlx-lm's.
            held = HeldOut(judge.measured[:4], judge.calibration)
            how: dict[str, Any] = {"way": way, "bits": bits, "allow_lossy": True}
            fuse(Request(MODEL, adapter, out, judge.tokenizer, rows=held, **how))
            add(way, bits or 4, out, time.monotonic() - began)
    return lines


def tell(line: dict[str, Any]) -> None:
    """One line of Markdown."""
    cells = [
        line["adapter"],
        line["way"],
        str(line["bits"] or ""),
        f"{line['bytes'] / 1e6:.2f}",
        f"{line['kl_mean']:.1e}",
        f"{line['kl_p99']:.1e}",
        f"{line['top1_agreement']:.4f}",
        f"{line['same_text']:.3f}",
        f"{line['score']:.3f} ({line['reference_score']:.3f})",
        f"{line['s']:.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def trained(kinds: Sequence[str], folder: Path, steps: int) -> tuple[dict[str, Path], Path]:
    """Adapters of the kinds, and the data they were trained on."""
    from mlx_itune.dataset.sample_data import write_sample
    from mlx_itune.training.engine.loop import train
    from mlx_itune.training.settings import settings_from

    data = write_sample(folder / "data")
    for kind in kinds:
        values = {"model": MODEL, "data": data, "out": folder / kind, "runs": folder / "runs"}
        recipe = {"steps": steps, "batch_size": 4, "learning_rate": 2e-3, "rank": 16}
        train(settings_from({**values, **recipe, "max_length": 1024, "adapter": kind}))
    return {kind: folder / kind for kind in kinds}, data


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", nargs="*", metavar="KIND=DIR")
    parser.add_argument("--kinds", nargs="*", default=["grid", "qalora", "lora"])
    parser.add_argument("--data", type=Path, help="the folder the adapters were trained on")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if options.adapters:
            pairs = (given.partition("=") for given in options.adapters)
            adapters, data = {kind: Path(path) for kind, _, path in pairs}, options.data
        else:
            adapters, data = trained(options.kinds, Path(made), options.steps)
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
        lines = [
            line for k, path in adapters.items() for line in measure(k, path, data, options.rows)
        ]
    if options.out:
        options.out.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
