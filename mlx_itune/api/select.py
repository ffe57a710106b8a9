"""`data select`: which rows of many to train on, and whether choosing them helped."""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.api.rows import Observe, PathLike
from mlx_itune.dataset.batching import epoch_order
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.importing.folder import new_folder, refuse_place
from mlx_itune.dataset.importing.inputs import find_inputs
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.sources import Splits, load_splits, to_row
from mlx_itune.inference.opening import Opening, open_model
from mlx_itune.inference.row_losses import Losses, interval, mean_of, row_losses
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import known
from mlx_itune.training.engine.loop import train
from mlx_itune.training.settings import settings_from

WAYS = ("loss-gain", "help", "longest", "random")
STEPS = 100
# Steps on the held-out rows that `help` asks about; rows of a measurement.
_HELP_STEPS, _JUDGED = 30, 500
# Of the texts that an example is found by: hashed words, and rows that are compared at once.
_FEATURES, _BLOCK = 1024, 1024


@dataclass(frozen=True)
class Tried:
    """A way to choose. loss: on validation rows after the short run; low, high: the 95 % interval
    of how far that is above random's on the same rows."""

    by: str
    rows: int
    loss: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Selected:
    """What was chosen, by `by`, and what each way came to. better: whether it beats random by more
    than chance; None where nothing was tried."""

    out: str
    by: str
    rows: int
    of: int
    steps: int
    tried: tuple[Tried, ...]
    better: bool | None


@dataclass
class _Choice:
    """Rows, and the rows that they are to help with."""

    model: str
    rows: Sequence[Conversation]
    held_out: Sequence[Conversation]
    seed: int
    work: Path
    observe: Observe

    def order(self, by: str) -> NDArray[np.int64]:
        """All places, the first ones to be chosen first; equals in random order."""
        random = epoch_order(len(self.rows), self.seed, 0)
        if by == "random":
            return random
        if by == "longest":
            said = (r.turns for r in self.rows)
            worth = np.array(
                [sum(len(t.content) for t in each if t.role == "assistant") for each in said], float
            )
        elif by == "help":
            worth = self.plain - self._losses(adapter=self.tuned("held-out rows", self.held_out))
        else:
            worth = self._losses(_with_examples(self.rows)) - self.plain
        # What could not be measured (too long) is chosen last.
        worth = np.where(np.isfinite(worth), worth, -np.inf)
        return random[np.argsort(-worth[random], kind="stable")]

    @cached_property
    def plain(self) -> NDArray[np.float64]:
        """`_losses` of the base on the rows as they are."""
        return self._losses()

    def _losses(
        self, rows: Sequence[Conversation] | None = None, adapter: Path | None = None
    ) -> NDArray[np.float64]:
        """(N,) float64: nats per token of each row's last answer; NaN where it is too long."""
        loaded, tokenizer = open_model(Opening(self.model, adapter))
        numbered = [
            replace(row, origin=str(n), checked=True) for n, row in enumerate(rows or self.rows)
        ]
        examples = prepare(numbered, tokenizer, learn="last", too_long="drop").examples
        stage = "with an example" if rows else "after the held-out rows" if adapter else "rows"
        told = row_losses(loaded, examples, lambda done, all_: self.observe(stage, done, all_))
        found = np.full(len(numbered), np.nan)
        places = [int(example.origin) for example in examples]
        found[places] = told[:, 0] / np.maximum(told[:, 1], 1e-12)
        return found

    def tuned(self, name: str, rows: Sequence[Conversation], steps: int = _HELP_STEPS) -> Path:
        """The adapter of a short run on rows."""
        folder = self.work / name
        folder.mkdir()
        for split, part in (("train", rows), ("valid", self.held_out[:16])):
            lines = (json.dumps(to_row(row)) + "\n" for row in part)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        s = {"model": self.model, "data": folder, "out": folder / "adapter", "steps": steps}
        s |= {"runs": folder / "runs", "eval_every": 0, "seed": self.seed, "save_every": 0}

        def seen(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                self.observe(f"a run on {name}", event["step"], event["steps"])

        return Path(train(settings_from(s), observe=seen).adapter)


def select(
    model: str,
    data: PathLike,
    *,
    count: int,
    out: PathLike,
    by: Sequence[str] = ("loss-gain",),
    steps: int = STEPS,
    seed: int = 0,
    observe: Observe = lambda stage, done, total: None,
) -> Selected:
    """Choose `count` training rows of `data` and write them, with its other splits, as a data
    folder. by, one or several of: "loss-gain" (MIWV, 2511.07074: rows whose answer gets no easier
    when a row like it is shown before), "help" (whose loss falls most where the model learns a
    little of held-out rows), "longest", "random". Of several, the one whose short run of `steps`
    has the lowest loss on validation rows is written; random is always tried. steps=0: no runs.
    Raises UsageError, DataError, ModelError, StorageError."""
    data, out = Path(data), Path(out)
    ways = [known("by", each, WAYS) for each in dict.fromkeys(by)]
    if not steps and len(ways) > 1:
        raise UsageError("several ways to choose need runs to tell the best", hint="--by one")
    refuse_place(out, find_inputs([data]))
    splits = load_splits(data, seed=seed)
    rows, valid = splits.train, splits.valid
    if not 0 < count < len(rows):
        raise UsageError(f"--count {count:,} of {len(rows):,} rows", hint="less than all, over 0")
    if len(valid) < (2 if "help" in ways else bool(steps)):
        raise UsageError("there are no validation rows to measure on", where=str(data))
    # What rows are chosen by is not what the choice is measured on.
    asked, judged = (valid[::2], valid[1::2]) if "help" in ways else (valid, valid)
    with tempfile.TemporaryDirectory() as work:
        choice = _Choice(model, rows, asked, seed, Path(work), observe)
        tried = dict.fromkeys([*ways, "random"] if steps else ways)
        chosen = {way: sorted(choice.order(way)[:count].tolist()) for way in tried}
        values: dict[str, Losses] = {}
        for way, places in chosen.items() if steps else ():
            part = [rows[place] for place in places]
            loaded, tokenizer = open_model(Opening(model, choice.tuned(way, part, steps)))
            values[way] = row_losses(loaded, prepare(judged[:_JUDGED], tokenizer).examples)
    table = tuple(_tried(way, count, values) for way in tried)
    best = min(ways, key=lambda way: mean_of(values[way])) if steps else ways[0]
    told = {"count": count, "by": best, "seed": seed, "model": model, "tried": sorted(tried)}
    _write(out, data, splits, chosen[best], told)
    high = next(each.high for each in table if each.by == best)
    better = None if high is None or best == "random" else high < 0
    return Selected(str(out), best, count, len(rows), steps, table, better)


def _tried(way: str, rows: int, values: dict[str, Losses]) -> Tried:
    if way not in values:
        return Tried(way, rows)
    above = (None, None) if way == "random" else interval(values[way], values["random"])
    return Tried(way, rows, mean_of(values[way]), *above)


def _write(
    out: Path, data: Path, splits: Splits, chosen: Sequence[int], settings: dict[str, Any]
) -> None:
    wanted = set(chosen)
    with new_folder(out, "select", [data], settings=settings) as folder:
        for place, row in enumerate(splits.train):
            if place in wanted:
                folder.add("train", row)
            else:
                folder.leave_out(row, "select")
        for name, part in (("valid", splits.valid), ("test", splits.test)):
            for row in part:
                folder.add(name, row)


def _with_examples(rows: Sequence[Conversation]) -> list[Conversation]:
    """Each row behind the one that asks the most like it, which is its example."""
    made = []
    for row, near in zip(rows, _nearest(rows), strict=True):
        example = tuple(turn for turn in rows[near].turns if turn.role != "system")
        system = tuple(turn for turn in row.turns if turn.role == "system")
        rest = tuple(turn for turn in row.turns if turn.role != "system")
        made.append(replace(row, turns=(*system, *example, *rest), checked=True))
    return made


def _nearest(rows: Sequence[Conversation]) -> NDArray[np.int64]:
    """(N,) int64: of each row another one, the nearest by the words of its user turns (cosine of
    hashed words, rare ones weighing more)."""
    features = np.zeros((len(rows), _FEATURES), np.float32)
    for place, row in enumerate(rows):
        asked = " ".join(turn.content for turn in row.turns if turn.role == "user")
        for word in set(re.findall(r"\w+", asked.lower())):
            features[place, zlib.crc32(word.encode()) % _FEATURES] = 1
    features *= np.log(len(rows) / np.maximum(features.sum(axis=0), 1)).astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    found = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        alike = features[start : start + _BLOCK] @ features.T
        alike[np.arange(len(alike)), np.arange(start, start + len(alike))] = -1
        found[start : start + len(alike)] = alike.argmax(axis=1)
    return found
