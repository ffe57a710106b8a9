"""SIGKILL, again and again: what comes out is, to the bit, what a run in peace makes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_itune.training.run import checkpoint
from tests.crash.small_run import outcome, write_data
from tests.crash.trainer import Trainer

KILLS = 3
ALL_KILLS = 200
STRIDE = 7
FLAGS = (
    *("--steps", 30, "--batch-size", 4, "--rank", 2, "--learning-rate", "5e-3"),
    *("--keys", "self_attn.q_proj", "--keys", "mlp.down_proj"),
    *("--save-every", 3, "--eval-every", 5, "--early-stopping", 5, "--seed", 7, "--offline"),
)


@dataclass(frozen=True)
class Attempt:
    """A place for one run: its adapter and its runs folder."""

    scene: Scene
    home: Path

    def go(self, kill_at: int | None = None) -> int:
        """What a user would type next: train, or resume once there is a run. Its exit code."""
        return self.start(kill_at).wait()

    def start(self, kill_at: int | None = None) -> Trainer:
        argv: list[object] = ["resume", *self.runs, "--offline"]
        if not self.runs:
            where = ("--out", self.home / "adapter", "--runs", self.home / "runs")
            model = ("--model", self.scene.model, "--data", self.scene.data)
            argv = ["train", *model, *where, *FLAGS]
        return Trainer(self.scene.log, *argv, kill_at=kill_at)

    @property
    def runs(self) -> list[Path]:
        """The run folders; there must never be more than one that is whole."""
        return [p for p in (self.home / "runs").glob("*") if not p.name.startswith(".")]

    def require_whole(self) -> None:
        """Read every checkpoint, which raises for a damaged one."""
        for run in self.runs:
            for path in checkpoint.all_of(run / "checkpoints"):
                checkpoint.read(path)

    def finish(self) -> None:
        """Go on to the end, which has to be that of a run in peace."""
        assert self.go() == 0, self.scene.log.read_text()[-2000:]
        (run,) = self.runs
        found, expected = outcome(run, self.home / "adapter"), self.scene.expected
        wrong = [name for name in expected if found[name] != expected[name]]
        assert not wrong, f"not the same as without a crash: {wrong}"


class Scene:
    """A model, its data, a log, and the outcome and duration of a run in peace."""

    def __init__(self, home: Path, model: Path) -> None:
        self.log, self.home, self.model = home / "log.txt", home, model
        self.data = write_data(home / "data")
        # Twice: the first run also tokenizes.
        for name in ("first", "peace"):
            began = time.monotonic()
            assert self.attempt(name).go() == 0, self.log.read_text()
            self.seconds = time.monotonic() - began
        (run,) = self.attempt("peace").runs
        self.expected = outcome(run, home / "peace" / "adapter")
        self.attempt("first").finish()

    def attempt(self, name: str) -> Attempt:
        return Attempt(self, self.home / name)


@pytest.fixture(scope="module")
def scene(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("crash"), tiny_model_dir)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(ALL_KILLS, marks=pytest.mark.crash)])
def test_a_run_killed_at_random_moments_ends_the_same(scene: Scene, kills: int) -> None:
    moments, killed, number = random.Random(kills), 0, 0
    while killed < kills:
        attempt = scene.attempt(f"random-{kills}-{number}")
        number += 1
        code = -9
        while code == -9 and killed < kills:
            trainer = attempt.start()
            # Somewhere in the whole of a run in peace, or short after its end.
            time.sleep(moments.uniform(0, 1.02 * scene.seconds))
            trainer.kill()
            code = trainer.wait()
            assert code in (0, -9), scene.log.read_text()[-2000:]
            attempt.require_whole()
            killed += code == -9
        attempt.finish()


def test_a_run_killed_at_chosen_writes_ends_the_same(scene: Scene) -> None:
    attempt = scene.attempt("chosen")
    # Before, at and within the first checkpoint, in a rotation, and while the adapter is written.
    for change in (5, 25, 70, 200):
        assert attempt.go(kill_at=change) == -9
        attempt.require_whole()
    attempt.finish()


@pytest.mark.crash
def test_a_kill_at_every_kind_of_write(scene: Scene) -> None:
    """Runs killed at their first change of the disk, at their eighth, and so on to the last.

    A checkpoint makes some twenty changes, again and again: seven apart, each of them is met.
    """
    change, code = 1, -9
    while code == -9:
        attempt = scene.attempt(f"write-{change}")
        code = attempt.go(kill_at=change)
        attempt.require_whole()
        attempt.finish()
        change += STRIDE
    assert code == 0 and change > 100
