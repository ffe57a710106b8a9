"""SIGKILL, again and again: what comes out is, to the bit, what a run in peace makes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.server import Server
from tests.crash.small_run import Attempt, outcome, sealed_and_whole, uninterrupted, write_data

KILLS = 3
ALL_KILLS = 200
STRIDE = 7


class Scene:
    """A model, its data, a server, and the outcome and duration of a run in peace."""

    def __init__(self, server: Server, home: Path, model: Path) -> None:
        self.server, self.home, self.model = server, home, model
        self.data = write_data(home / "data")
        # Twice: the first run also tokenizes.
        uninterrupted(server, home / "first", model, self.data)
        began = time.monotonic()
        self.expected = outcome(uninterrupted(server, home / "peace", model, self.data))
        self.seconds = time.monotonic() - began
        assert outcome(Attempt(home / "first")) == self.expected

    def attempt(self, name: str) -> Attempt:
        return Attempt(self.home / name)

    def go(self, attempt: Attempt, **how: Any) -> Any:
        return self.server.start(*attempt.command(self.model, self.data), **how)

    def check(self, attempt: Attempt) -> None:
        found = outcome(attempt)
        wrong = [name for name in self.expected if found[name] != self.expected[name]]
        assert not wrong, f"not the same as without a crash: {wrong}"


@pytest.fixture(scope="module")
def scene(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("crash")
    with Server(home / "log.txt") as server:
        yield Scene(server, home, tiny_model_dir)


def killed_at_random(scene: Scene, name: str, kills: int, seed: int) -> int:
    """Kill one run after another at random moments until there were so many kills."""
    moments, killed, number = random.Random(seed), 0, 0
    while killed < kills:
        attempt = scene.attempt(f"{name}-{number}")
        number += 1
        for _ in range(kills):
            trainer = scene.go(attempt)
            # Somewhere in the whole of a run in peace, or short after its end.
            time.sleep(moments.uniform(0, 1.02 * scene.seconds))
            trainer.kill()
            code = trainer.wait()
            assert code in (0, -9), scene.server.log.read_text()[-2000:]
            sealed_and_whole(attempt)
            killed += code == -9
            if code == 0 or killed >= kills:
                break
        if not (attempt.out / "adapters.safetensors").exists() or code:
            assert scene.go(attempt).wait() == 0, scene.server.log.read_text()[-2000:]
        scene.check(attempt)
    return killed


def test_a_run_killed_at_random_moments_ends_the_same(scene: Scene) -> None:
    assert killed_at_random(scene, "random", KILLS, seed=1) == KILLS


def test_a_run_killed_at_chosen_writes_ends_the_same(scene: Scene) -> None:
    attempt = scene.attempt("chosen")
    # Before, at and within the first checkpoint, in a rotation, and while the adapter is written.
    for change in (5, 25, 70, 200):
        assert scene.go(attempt, kill_at=change).wait() == -9
        sealed_and_whole(attempt)
    assert scene.go(attempt).wait() == 0, scene.server.log.read_text()[-2000:]
    scene.check(attempt)


@pytest.mark.crash
def test_two_hundred_random_kills(scene: Scene) -> None:
    assert killed_at_random(scene, "many", ALL_KILLS, seed=2) == ALL_KILLS


@pytest.mark.crash
def test_a_kill_at_every_kind_of_write(scene: Scene) -> None:
    """Runs killed at their first change of the disk, at their eighth, and so on to the last.

    A checkpoint makes some twenty changes, again and again: seven apart, each of them is met.
    """
    change = 1 - STRIDE
    while True:
        change += STRIDE
        attempt = scene.attempt(f"write-{change}")
        code = scene.go(attempt, kill_at=change).wait()
        sealed_and_whole(attempt)
        if code == 0:
            break
        assert code == -9
        assert scene.go(attempt).wait() == 0, scene.server.log.read_text()[-2000:]
        scene.check(attempt)
    assert change > 100
