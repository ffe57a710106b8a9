"""What a loaded model's activations take, roughly: enough to choose how a step is computed."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.model.adapters.lowrank import LINEAR, SWITCH, LowRank, matrix_shape
from mlx_itune.model.engine import memory
from mlx_itune.model.engine.loss import chunk_rows, vocabulary

# Numbers kept per position and per number that goes into or comes out of a linear layer: norms,
# gates and attention keep theirs too. Measured: 1.1 to 1.4 on llama and qwen3 shapes.
_KEPT = 1.4
# Copies of a chunk's logits that stand at once: themselves, shifted, and their gradient.
_LOGITS_COPIES = 3
# Of the machine's memory, where no budget is given.
_SHARE = 0.7


def bytes_per_token(model: nn.Module) -> int:
    """What all blocks keep for the backward pass of one position, without checkpointing."""
    numbers = 0
    for block in model.layers:
        for _, module in block.named_modules():
            if isinstance(module, LowRank):
                continue
            if isinstance(module, LINEAR) or hasattr(module, "group_size"):
                numbers += sum(matrix_shape(module)) if "weight" in module else 0
            elif isinstance(module, SWITCH):
                numbers += int(module.weight.shape[-2] + module.weight.shape[-1])
    return kept_bytes(numbers, _itemsize(model))


def kept_bytes(numbers: int, item_bytes: int) -> int:
    """The same, where so many numbers go into and come out of linear layers."""
    return int(_KEPT * numbers * item_bytes)


def logits_bytes(model: nn.Module) -> int:
    """What one chunk of logits takes, with what its gradient is made of."""
    return logits_of(vocabulary(model), hidden_size(model))


def logits_of(vocabulary_size: int, hidden: int) -> int:
    """The same by sizes."""
    return _LOGITS_COPIES * 4 * chunk_rows(vocabulary_size, hidden) * vocabulary_size


def default_budget_bytes() -> int:
    """What a run may take of this machine; the same at each start, whatever else is running."""
    here = memory.machine()
    return here.limit_bytes if here.device == "gpu" else int(_SHARE * here.total_bytes)


def hidden_size(model: nn.Module) -> int:
    """The width of a model's blocks; 0 where no token table tells."""
    tables = (m for _, m in model.named_modules() if hasattr(m, "as_linear") and "weight" in m)
    return next((matrix_shape(table)[1] for table in tables), 0)


def _itemsize(model: nn.Module) -> int:
    norm = next((a for a in model.parameters().values() if isinstance(a, mx.array)), None)
    return 4 if norm is None else int(norm.itemsize)
