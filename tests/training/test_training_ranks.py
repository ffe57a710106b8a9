"""Two processes of one run: the numbers of one process, one writer, and a peer that goes away."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.training.engine.rank_choice import Ranks
from mlx_itune.training.run.story import read
from tests.cli.conftest import until
from tests.crash.small_run import outcome, write_data
from tests.crash.trainer import Trainer

import mlx.core as mx  # isort: skip

Finished = list[tuple[int, str]]


def launched(home: Path, first: list[object], second: list[object] | None = None) -> list[Trainer]:
    """What `mlx.launch -n 2 --backend ring` starts; the second process may get other flags."""
    with socket.socket() as one, socket.socket() as other:
        for place in (one, other):
            place.bind(("127.0.0.1", 0))
        hosts = [[f"127.0.0.1:{place.getsockname()[1]}"] for place in (one, other)]
    file = home / "hosts.json"
    file.write_text(json.dumps(hosts))
    both = []
    for rank, argv in enumerate((first, second or first)):
        (log := home / f"log-{rank}").unlink(missing_ok=True)
        env = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)}
        both.append(Trainer(log, *argv, env=env))
    return both


def finished(home: Path, both: list[Trainer]) -> Finished:
    """Of each its exit code, and what it said on both streams."""
    codes = [trainer.wait() for trainer in both]
    return [(code, (home / f"log-{rank}").read_text()) for rank, code in enumerate(codes)]


def told(said: str) -> Any:
    """The one JSON object among what a process said."""
    (line,) = [line for line in said.splitlines() if line.startswith("{")]
    return json.loads(line)


def flags(model: Path, home: Path, name: str, steps: int = 6) -> list[object]:
    data = home / "data"
    if not data.exists():
        write_data(data)
    place = ["--out", home / name, "--runs", home / f"{name}-runs", "--offline", "--json"]
    how = ["--steps", steps, "--batch-size", 5, "--rank", 2, "--learning-rate", "5e-3"]
    return ["train", "--model", model, "--data", data, *place, *how, "--eval-every", 3]


def test_two_processes_learn_what_one_learns(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert Trainer(tmp_path / "log", *flags(tiny_model_dir, tmp_path, "one")).wait() == 0
    both = finished(tmp_path, launched(tmp_path, flags(tiny_model_dir, tmp_path, "two")))
    assert [code for code, _ in both] == [0, 0], both
    result = told(both[0][1])
    assert both[1][1] == ""
    assert result["adapter"] == str(tmp_path / "two") and result["steps"] == 6
    assert {path.name for path in tmp_path.iterdir()} == {
        "data", "hosts.json", "log", "log-0", "log-1", "one", "one-runs", "two", "two-runs",
    }  # fmt: skip
    (ours,), (theirs,) = ((tmp_path / f"{name}-runs").iterdir() for name in ("two", "one"))
    two, one = read(ours), read(theirs)
    assert two.curve("loss") == pytest.approx(one.curve("loss"), rel=1e-5)
    assert two.validations == pytest.approx(one.validations, rel=1e-5)
    tuned = [mx.load(str(tmp_path / name / "adapters.safetensors")) for name in ("one", "two")]
    for name, array in tuned[0].items():
        assert float(mx.abs(array - tuned[1][name]).max()) < 1e-4 * float(mx.abs(array).max())


def test_a_lost_process_ends_in_a_checkpoint_that_goes_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    whole = launched(tmp_path, flags(tiny_model_dir, tmp_path, "whole", 40))
    assert [code for code, _ in finished(tmp_path, whole)] == [0, 0]
    first, second = launched(tmp_path, flags(tiny_model_dir, tmp_path, "cut", 40))
    logs = (tmp_path / "cut-runs").glob
    until(
        lambda: any(log.read_text().count('"event": "step"') > 3 for log in logs("2*/events.jsonl"))
    )
    second.kill()
    ((code, said), _) = finished(tmp_path, [first, second])
    assert code == 7 and "another process of this run is gone" in said
    assert "mlx-itune resume" in told(said)["error"]["hint"]
    (run,) = (tmp_path / "cut-runs").iterdir()
    again = finished(tmp_path, launched(tmp_path, ["resume", run, "--offline", "--json"]))
    assert [code for code, _ in again] == [0, 0], again
    (expected,) = (tmp_path / "whole-runs").iterdir()
    assert outcome(run, tmp_path / "cut") == outcome(expected, tmp_path / "whole")


def test_processes_with_other_rows_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same names everywhere, but one machine's rows are older."""
    argv = flags(tiny_model_dir, tmp_path, "out")
    older = Path(shutil.copytree(tmp_path / "data", tmp_path / "older"))
    rows = (older / "train.jsonl").read_text()
    (older / "train.jsonl").write_text(rows.replace("twice", "once"))
    there = [older if part == tmp_path / "data" else part for part in argv]
    both = finished(tmp_path, launched(tmp_path, argv, there))
    (code, err), (other_code, other_err) = both
    assert (code, other_code) == (2, 2)
    assert "tokens here is not what process 0 has" in other_err
    assert "not what process 0 has" in err
    assert not (tmp_path / "out").exists()


def test_shares_are_balanced_and_whole() -> None:
    items = list(range(20))
    costs = [float(1 + item * item % 17) for item in items]
    shares = [
        Ranks(SimpleNamespace(rank=lambda own=own: own, size=lambda: 3)).share(items, costs)
        for own in range(3)
    ]
    assert sorted(item for share in shares for item in share) == items
    loads = [sum(costs[item] for item in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)
    assert Ranks().share(items, costs) == items
