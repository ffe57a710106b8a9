"""A model, its adapter and its tokenizer, opened together as commands need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_itune.kit.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.render import TokenizedExample
    from mlx_itune.dataset.tokenizer import ChatTokenizer
    from mlx_itune.model.adapter import Adapter
    from mlx_itune.model.base import LoadedModel

# Rows that a fuse is measured on, and what it is measured with when nobody gives any.
FIDELITY_ROWS = 64
_FIDELITY_TOKENS = 64
_FIDELITY_PROMPTS = (
    "Hello, who are you?",
    "Explain in two sentences why the sky is blue.",
    "List three things to pack for a weekend trip.",
    "Translate to French: Where is the train station?",
    'Return JSON with the keys "name" and "age" for: Anna is 34 years old.',
    "What is 17 plus 25? Answer with the number only.",
    "Write one sentence that thanks a colleague for their help.",
    "Summarize: The meeting moved from Monday to Wednesday because the room was taken.",
)


def open_tokenizer(path: Path, adapter: Adapter | None, template: str | None) -> ChatTokenizer:
    """The tokenizer with the template asked for, else the adapter's, else the model's own."""
    from mlx_itune.dataset.tokenizer import load_tokenizer

    trained = (adapter.provenance.get("tokenizer") or {}).get("template") if adapter else None
    return load_tokenizer(path, template=template or trained or "auto")


def open_model(
    model: str,
    adapter_dir: Path | None,
    *,
    template: str | None = None,
    compute: str = "auto",
    offline: bool = False,
) -> tuple[LoadedModel, ChatTokenizer]:
    """The model, with the adapter on it where one is given, ready for inference."""
    from mlx_itune.model import adapter as adapters
    from mlx_itune.model import base

    adapter = adapters.load(adapter_dir) if adapter_dir else None
    tokenizer = open_tokenizer(base.resolve(model, offline=offline), adapter, template)
    loaded = base.load(model, compute=compute, offline=offline)
    if adapter:
        adapters.apply(loaded, adapter)
    loaded.model.eval()
    return loaded, tokenizer


def rows_of(data: Path, split: str = "auto") -> tuple[str, Sequence[Conversation]]:
    """(split name, rows) of a file (all its rows) or a folder (test, else valid, else train).

    Raises DataError for broken rows and an empty split, UsageError for a split that is not there.
    """
    from mlx_itune.dataset.faults import Fault
    from mlx_itune.dataset.sources import load_splits, read_rows

    if data.is_file():
        if split != "auto":
            raise UsageError(f"a single file has no {split} split", where=str(data))
        rows: list[Conversation] = []
        faults: list[Fault] = []
        for row in read_rows(data):
            (faults if isinstance(row, Fault) else rows).append(row)  # type: ignore[arg-type]
        if faults:
            raise DataError(
                f"{len(faults)} broken rows, the first: {faults[0]}",
                where=str(data),
                hint=f"mlx-itune data check {data}",
            )
        if not rows:
            raise DataError("holds no rows", where=str(data))
        return data.name, rows
    splits = load_splits(data)
    if split == "auto":
        split = "test" if splits.test else "valid" if splits.valid else "train"
    chosen: Sequence[Conversation] = getattr(splits, split)
    if not chosen:
        raise UsageError(f"there is no {split} split", where=str(data))
    return split, chosen


def fidelity_examples(
    model: str,
    adapter_dir: Path | None,
    tokenizer: ChatTokenizer,
    data: Path | None,
    *,
    compute: str,
    offline: bool,
) -> Sequence[TokenizedExample]:
    """Held-out rows of ``data``; without it the (tuned) model's answers to built-in prompts."""
    import numpy as np

    from mlx_itune.dataset.conversation import Turn
    from mlx_itune.dataset.prepare import prepare
    from mlx_itune.dataset.render import TokenizedExample
    from mlx_itune.inference.generate import Generator

    if data is not None:
        rows = rows_of(data)[1][:FIDELITY_ROWS]
        return prepare(rows, tokenizer).examples
    loaded, _ = open_model(model, adapter_dir, compute=compute, offline=offline)
    prompts = [tokenizer.prompt_ids([Turn("user", text)]) for text in _FIDELITY_PROMPTS]
    answers = Generator(loaded, tokenizer).batch(prompts, _FIDELITY_TOKENS)
    examples = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *tokenizer.encode(answer).ids.tolist(), tokenizer.closing_id]
        weights = np.zeros(len(ids), dtype=np.float32)
        weights[len(prompt) :] = 1
        examples.append(TokenizedExample(np.array(ids, dtype=np.int32), weights, "built-in"))
    return examples
