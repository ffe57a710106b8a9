"""Commands as a user calls them, in this process."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mlx_itune.cli import main
from tests.dataset.data_command import run  # noqa: F401


def ended(*argv: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in argv])
    return int(left.value.code or 0)


def until(happened: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not happened():
        time.sleep(0.01)


WORDS = (
    "river stone bright engine window market garden silver paper north winter signal letter bridge"
    " cloud forest travel music number planet kitchen doctor museum button"
).split()


def sentence(rng: random.Random, words: int) -> str:
    """Words with numbers, so that no two sentences are alike."""
    return " ".join(rng.choice(WORDS) + str(rng.randrange(90)) for _ in range(words))


@dataclass(frozen=True)
class Cli:
    """`cli("data", "show", file)` is what the command prints on both streams."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: object, code: int = 0) -> Any:
        left, printed = ended(*argv), self.capsys.readouterr()
        assert left == code, printed.err
        return printed

    def json(self, *argv: object, code: int = 0) -> Any:
        """The one JSON object that it prints; the error in it where it ends in another code."""
        out = self(*argv, "--json", "--offline", code=code).out
        assert out.count("\n") == 1
        found = json.loads(out)
        return found.get("error", found)

    def refused(self, *argv: object, code: int) -> str:
        """The one line on stderr of a command that ends with this exit code."""
        err: str = self(*argv, "--offline", code=code).err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line."""
    return Cli(capsys)
