"""A run of a tiny model that can be killed, continued and compared with one that was not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.training.run import checkpoint
from mlx_itune.training.run.story import read
from tests.crash.server import Server

STEPS = 30
# What no two runs share: where they are, and what their clocks and memory say.
CLOCK = frozenset(
    "run adapter wall_s tokens_per_second supervised_tokens_per_second peak_memory_bytes".split()
)
FLAGS = (
    *("--steps", STEPS, "--batch-size", 4, "--rank", 2, "--learning-rate", "5e-3"),
    *("--keys", "self_attn.q_proj", "--keys", "mlp.down_proj"),
    *("--save-every", 3, "--eval-every", 5, "--early-stopping", 5, "--seed", 7, "--offline"),
)


def write_data(folder: Path) -> Path:
    """24 rows to learn, of unlike lengths, and 4 to validate."""
    folder.mkdir()
    for name, count in (("train", 24), ("valid", 4)):
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


@dataclass(frozen=True)
class Attempt:
    """A place for one run: its adapter and its runs folder."""

    home: Path

    @property
    def out(self) -> Path:
        """The adapter."""
        return self.home / "adapter"

    @property
    def runs(self) -> list[Path]:
        """The run folders; there must never be more than one that is whole."""
        home = self.home / "runs"
        found = home.iterdir() if home.is_dir() else ()
        return sorted(path for path in found if not path.name.startswith("."))

    def command(self, model: Path, data: Path) -> list[object]:
        """What a user would type next: train, or resume once there is a run."""
        if self.runs:
            return ["resume", self.runs[0], "--offline"]
        where = ("--out", self.out, "--runs", self.home / "runs")
        return ["train", "--model", model, "--data", data, *where, *FLAGS]


def outcome(attempt: Attempt) -> dict[str, Any]:
    """All that has to be the same, to the bit, however often a run was interrupted."""
    (run,) = attempt.runs
    last = checkpoint.complete(run / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    result = json.loads((run / "result.json").read_text())
    story = read(run)
    return {
        "adapter": (attempt.out / "adapters.safetensors").read_bytes(),
        "adapter config": (attempt.out / "adapter_config.json").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "weights": (last / "adapters.safetensors").read_bytes(),
        "state": {k: v for k, v in state.items() if k not in ("clock", "run")},
        "result": {k: v for k, v in result.items() if k not in CLOCK},
        "steps": list(story.steps),
        "losses": story.curve("loss").tobytes(),
        "norms": story.curve("gradient_norm").tobytes(),
        "validations": (list(story.valid_steps), list(story.valid_losses)),
    }


def sealed_and_whole(attempt: Attempt) -> int:
    """Read every checkpoint of an attempt, which raises for a damaged one; how many there are."""
    found = [path for run in attempt.runs for path in checkpoint.all_of(run / "checkpoints")]
    for path in found:
        checkpoint.read(path)
    return len(found)


def uninterrupted(server: Server, home: Path, model: Path, data: Path) -> Attempt:
    """The run that all others are compared with."""
    attempt = Attempt(home)
    code = server.start(*attempt.command(model, data)).wait()
    assert code == 0, server.log.read_text()
    return attempt
