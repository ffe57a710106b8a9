"""`train` as a user types it: what it says at its end, and that nothing useless is shipped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.cli import main
from tests.crash.small_run import write_data

Capture = pytest.CaptureFixture[str]


class Place:
    """A home for runs on 24 short rows."""

    def __init__(self, home: Path, model: Path, capsys: Capture) -> None:
        self.home, self.model, self.capsys = home, model, capsys
        self.data, self.out, self.runs = write_data(home / "data"), home / "out", home / "runs"

    def call(self, *argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*map(str, argv)])
        captured = self.capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    def train(self, *flags: object) -> tuple[int, str, str]:
        where = ("--data", self.data, "--out", self.out, "--runs", self.runs)
        small = ("--rank", 2, "--batch-size", 4, "--keys", "self_attn.q_proj", "--offline")
        return self.call("train", "--model", self.model, *where, *small, "--steps", 4, *flags)


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, capsys: Capture) -> Place:
    return Place(tmp_path, tiny_model_dir, capsys)


def not_shipped(place: Place, *flags: object) -> str:
    code, _, err = place.train(*flags)
    (run,) = place.runs.iterdir()
    assert code == 6 and not place.out.exists(), err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert str(run) in error
    code, out, _ = place.call("runs", "show", "last", "--runs", place.runs, "--json")
    assert code == 0 and json.loads(out)["state"] == "diverged"
    return error


def test_a_base_of_nan_learns_nothing_and_ships_nothing(place: Place) -> None:
    broken = shutil.copytree(place.model, place.home / "broken")
    (file,) = broken.glob("*.safetensors")
    weights: Any = mx.load(str(file))
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    place.model = broken
    assert "not finite in all 4 steps" in not_shipped(place)


def test_a_validation_that_ends_not_finite_ships_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_itune.training.engine.step import Learner

    losses = iter([3.0, float("nan")])
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: next(losses))
    assert "validation loss after step 4 is not finite" in not_shipped(place)


def test_a_warm_up_without_an_end_is_told(place: Place) -> None:
    code, _, err = place.train("--warmup", 300)
    assert code == 0 and "warning: all 4 steps are warm-up" in err


def test_another_tool_s_configuration_is_told_the_names_here(place: Place) -> None:
    config = place.home / "lora_config.yaml"
    config.write_text(
        "model: x\niters: 100\nlora_parameters:\n  rank: 8\n  scale: 20.0\nlr: 1e-5\n"
    )
    code, _, err = place.call("train", "--config", config)
    assert code == 2 and err.count("\n") == 1
    for words in ("is YAML", "iters is steps", "scale is alpha / rank", "lr is learning_rate"):
        assert words in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--alpha", "1e300"), "alpha must be above 0 and at most 1,000,000"),
        (("--learning-rate", "nan"), "learning_rate must be above 0 and below 1, not nan"),
        (("--warmup", "inf"), "warmup must be at least 0"),
        (("--seed", 10**26), "seed must be at least 0 and at most"),
        (("--lr", 1e-3), "did you mean --learning-rate?"),
        (("--iters", 9), "did you mean --steps?"),
        (("--scale", 9), "did you mean --alpha?"),
        (("--adapter-path", "x"), "did you mean --out?"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    flags: tuple[object, ...], said: str, place: Place
) -> None:
    code, _, err = place.train(*flags)
    assert code == 2 and said in err and err.count("\n") == 1
    assert not place.runs.exists()


def test_the_end_names_rows_the_shipped_step_the_report_and_the_next_command(place: Place) -> None:
    rows = (place.data / "train.jsonl").read_text()
    long = {"prompt": "word " * 400, "completion": "yes"}
    (place.data / "train.jsonl").write_text(rows + 3 * (json.dumps(long) + "\n"))
    code, out, err = place.train("--too-long", "drop", "--max-length", 300)
    assert code == 0, err
    (run,) = place.runs.iterdir()
    assert "3 of 27 rows are not used: longer than 300 tokens" in err
    said = dict(re.split(r"  +|: ", line, maxsplit=1) for line in out.splitlines())
    assert said["rows"] == "16 of 24 used, 3 not used" and said["report"] == str(
        run / "report.html"
    )
    assert said["adapter"].startswith(f"{place.out} (of step 4, the last")
    eval_line = f"mlx-itune eval --model {place.model} --adapter {place.out} --data {place.data}"
    assert said["next"] == eval_line
    # One train loss, wherever it stands.
    shown = re.findall(r"train loss ([\d.]+)", err)[-1]
    assert float(shown) == pytest.approx(float(said["train loss"]), rel=1e-3)
    assert place.call(*eval_line.split()[1:], "--offline")[0] == 0


def test_the_list_of_runs_fits_80_columns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert place.train()[0] == 0
    (run,) = place.runs.iterdir()
    code, out, _ = place.call("runs", "list", "--runs", place.runs)
    assert code == 0 and "…" not in out and all(len(line) <= 80 for line in out.splitlines())
    assert run.name in out and "finished" in out and "4/4" in out
