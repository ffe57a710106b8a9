#!/usr/bin/env python3
"""Pretrain the embedded starter model and write it, 4-bit, in mlx-lm's layout.

usage: python -m starter.pretrain --out mlx_itune/model/starter [--tokens 40e6] [--seed 1]

Needs torch (a development dependency of this script only), a C++ compiler for torch.compile, and
about 45 minutes on two cores. See docs/starter.md for the recipe, the curve and the limits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from starter.corpus import documents
from starter.network import Llama, Shape, plant_copy_heads
from starter.publish import publish
from starter.vocabulary import train_tokenizer

WIDTH = 512  # tokens a row
BATCH = 16  # rows a step


def token_stream(tokenizer: Tokenizer, seed: int, n_tokens: int) -> np.ndarray:
    """Documents of the corpus, each closed by the end token, as one (N,) uint16 array."""
    end = tokenizer.token_to_id("<|end|>")
    chunks: list[np.ndarray] = []
    total = 0
    batch: list[str] = []
    for text in documents(seed, 10**9):
        batch.append(text)
        if len(batch) < 4096:
            continue
        for encoding in tokenizer.encode_batch(batch):
            chunks.append(np.array([*encoding.ids, end], dtype=np.uint16))
            total += len(chunks[-1])
        batch = []
        if total >= n_tokens:
            break
    return np.concatenate(chunks)[:n_tokens]


def repeated_rows(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """(n, WIDTH + 1) rows in which a random stretch of tokens comes again and again.

    They can only be predicted by looking back: the training signal of copying.
    """
    rows = np.empty((n, WIDTH + 1), dtype=np.int64)
    for row in rows:
        period = int(rng.integers(8, 200))
        stretch = rng.integers(1, vocab, size=period)
        row[:] = np.tile(stretch, WIDTH // period + 2)[: WIDTH + 1]
    return rows


def repeated_share(step: int) -> float:
    """Share of repeated rows: much while the copy heads settle, little afterwards."""
    return 0.4 if step < 150 else 0.15 if step < 600 else 0.03


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then cosine to 2 % of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    progress = (step - 100) / max(1, steps - 100)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_for(model: Llama) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


def main() -> None:
    """Run the whole recipe."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--tokens", type=float, default=40e6)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument("--save-every-s", type=float, default=600.0)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed)

    started = time.monotonic()
    tokenizer = train_tokenizer(documents(a.seed + 1000, 12_000))
    stream = token_stream(tokenizer, a.seed, int(a.tokens))
    held_out = token_stream(tokenizer, a.seed + 500, 300_000)
    steps = len(stream) // (WIDTH * BATCH)
    print(f"corpus: {len(stream):,} tokens, {time.monotonic() - started:.0f} s", flush=True)

    shape = Shape(vocab_size=tokenizer.get_vocab_size())
    model = Llama(shape)
    plant_copy_heads(model)
    optimizer = optimizer_for(model)
    compiled = torch.compile(model)
    starts = rng.permutation(len(stream) // WIDTH - 1) * WIDTH
    curve: list[dict[str, float]] = []
    saved = started = time.monotonic()
    cursor = 0
    mean_loss = 0.0
    for step in range(steps):
        n_repeated = int(rng.binomial(BATCH, repeated_share(step)))
        picks = [starts[(cursor + i) % len(starts)] for i in range(BATCH - n_repeated)]
        cursor += len(picks)
        text = np.stack([stream[s : s + WIDTH + 1] for s in picks]).astype(np.int64)
        rows = np.concatenate([text, repeated_rows(rng, n_repeated, shape.vocab_size)])
        ids = torch.from_numpy(rows)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, a.learning_rate)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss += loss.item()
        if step % 100 == 99 or step == steps - 1:
            valid = held_out_loss(compiled, held_out)
            elapsed = time.monotonic() - started
            speed = (step + 1) * WIDTH * BATCH / elapsed
            point = {"step": step + 1, "train": mean_loss / (step % 100 + 1), "valid": valid}
            curve.append({k: round(v, 4) for k, v in point.items()})
            mean_loss = 0.0
            print(
                f"{point} {speed:.0f} tok/s {elapsed:.0f} s of {elapsed / (step + 1) * steps:.0f}",
                flush=True,
            )
            if time.monotonic() - saved > a.save_every_s:
                publish(model, tokenizer, a.out, curve, (step + 1) * WIDTH * BATCH)
                saved = time.monotonic()
    publish(model, tokenizer, a.out, curve, steps * WIDTH * BATCH)
    print(json.dumps(curve[-1]))


def held_out_loss(model: torch.nn.Module, stream: np.ndarray) -> float:
    """Mean next-token loss (nats) over 16 rows of held-out documents."""
    rows = stream[: 16 * (WIDTH + 1)].reshape(16, WIDTH + 1).astype(np.int64)
    ids = torch.from_numpy(rows)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return float(model(ids[:, :-1], ids[:, 1:]).item())


if __name__ == "__main__":
    main()
