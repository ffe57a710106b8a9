"""A few rows to learn, and what of a run has to be the same however often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_itune.training.run import checkpoint
from mlx_itune.training.run.story import read

# What no two runs share: where they are, and what their clocks and memory say.
CLOCK = frozenset(
    "run adapter wall_s tokens_per_second supervised_tokens_per_second peak_memory_bytes".split()
)


def write_data(folder: Path, train: int = 24, valid: int = 4) -> Path:
    """Rows to learn, of unlike lengths, and some to validate."""
    folder.mkdir()
    for name, count in (("train", train), ("valid", valid)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"Question {name} {i}: metformin{'?' * (i % 7)}"},
                    {"role": "assistant", "content": f"Yes, {i} mg twice daily." * (1 + i % 3)},
                ]
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def outcome(run: Path, out: Path) -> dict[str, Any]:
    """All that has to be the same, to the bit."""
    last = checkpoint.complete(run / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    result = json.loads((run / "result.json").read_text())
    story = read(run)
    return {
        "adapter": (out / "adapters.safetensors").read_bytes(),
        "adapter config": (out / "adapter_config.json").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "weights": (last / "adapters.safetensors").read_bytes(),
        "state": {k: v for k, v in state.items() if k not in ("clock", "run")},
        "result": {k: v for k, v in result.items() if k not in CLOCK},
        "steps": story.steps,
        "losses": story.curve("loss").tobytes(),
        "norms": story.curve("gradient_norm").tobytes(),
        "validations": story.validations,
    }
