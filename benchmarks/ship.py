"""Is what llama.cpp answers what was trained: a 4-bit model in, tuned by grid, the same size out.

usage: python benchmarks/ship.py [MODEL] [--minutes 6] [--rows 100] [--json]

Banking77 (a message, the name of its intent) is learned by a `grid` adapter, which moves the base's
own 4-bit codes; fused, it is written as GGUF in those codes. The same held-out rows are answered by
the base, by base + adapter, and by llama.cpp from the file that ships. MODEL is a directory or a
name, smollm2 unless given; llama-cpp-python is needed (make parity installs it).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine import called
from quality import ROOT, write_banking

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.inference.evaluate import exact_match, question
from mlx_itune.inference.opening import rows_of
from mlx_itune.model.loading.base import resolve

MOST_TOKENS = 32


def ours(verb: str, *arguments: object) -> dict[str, Any]:
    """What one of our commands says with --json."""
    return called(sys.executable, "-m", "mlx_itune", verb, *map(str, arguments), "--json")


def in_llama_cpp(file: Path, model: str, data: Path) -> float:
    """The share of rows that llama.cpp answers exactly, from the very ids that training had."""
    import llama_cpp

    tokenizer = load_tokenizer(resolve(model))
    llama = llama_cpp.Llama(str(file), n_ctx=512, verbose=False)
    right = 0
    _, rows = rows_of(data)
    for row in rows:
        asked = question(row, tokenizer)
        assert asked is not None
        made = llama.create_completion(asked[0], max_tokens=MOST_TOKENS, temperature=0.0)
        right += exact_match(made["choices"][0]["text"], asked[1])
    return right / len(rows)


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    write_banking(args.shared, work)
    test = work / "test.jsonl"
    test.write_text("".join(test.read_text().splitlines(keepends=True)[: args.rows]))
    base = "--model", args.model
    adapter, fused, file = work / "adapter", work / "fused", work / "tuned.gguf"
    learn = "--data", work, "--out", adapter, "--runs", work / "runs", "--adapter", "grid"
    trained = ours("train", *base, *learn, "--time", f"{args.minutes}m")
    scores = ours("eval", *base, "--adapter", adapter, "--data", test, "--max-new-tokens", 32)
    merged = ours("fuse", *base, "--adapter", adapter, "--out", fused, "--data", work)
    ours("export", "--model", fused, "--to", "gguf", "--out", file)
    return {
        "base": scores["base"]["exact_match"],
        "base_bytes": sum(f.stat().st_size for f in resolve(args.model).glob("*.safetensors")),
        "steps": trained["steps"],
        "wall_s": trained["wall_s"],
        "tuned": scores["exact_match"],
        "kl_mean": merged["kl_mean"],
        "top1_agreement": merged["top1_agreement"],
        "gguf_bytes": file.stat().st_size,
        "llama_cpp": in_llama_cpp(file, args.model, test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2", help="a model directory or a name")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--minutes", type=float, default=6.0, help="time to train")
    parser.add_argument("--rows", type=int, default=100, help="held-out rows")
    parser.add_argument("--json", action="store_true", help="one object instead of lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-itune-ship-") as folder:
        found = measure(args, Path(folder))
    if args.json:
        print(json.dumps(found))
        return
    print(f"in    {found['base_bytes']:,} bytes, {found['base']:.0%} of {args.rows} rows right")
    print(f"train {found['steps']} steps of grid, {found['wall_s']:.0f} s")
    print(f"tuned {found['tuned']:.0%} right; fused: KL {found['kl_mean']:.2g} nats per token")
    print(f"out   {found['gguf_bytes']:,} bytes, {found['llama_cpp']:.0%} right in llama.cpp")


if __name__ == "__main__":
    main()
