"""Commands as a user calls them, in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from mlx_itune.cli import main
from tests.dataset.data_command import run  # noqa: F401


@dataclass(frozen=True)
class Cli:
    """`cli("data", "show", file)` is what the command prints on both streams."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: object, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in argv])
        assert (left.value.code or 0) == code
        return self.capsys.readouterr()

    def json(self, *argv: object, code: int = 0) -> Any:
        """The one JSON object that it prints; the error in it where it ends in another code."""
        out = self(*argv, "--json", "--offline", code=code).out
        assert out.count("\n") == 1
        return json.loads(out)["error"] if code else json.loads(out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line."""
    return Cli(capsys)
