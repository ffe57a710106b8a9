"""`train` and `plan` as a user types them: what they say, and that nothing useless is shipped."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from tests.crash.small_run import write_data


@dataclass(frozen=True)
class Place:
    """A home for runs on 24 short rows."""

    cli: Any
    home: Path
    model: Path

    @property
    def flags(self) -> tuple[object, ...]:
        return ("--model", self.model, "--data", self.home / "data", "--offline")

    def train(self, *flags: object, code: int = 0) -> Any:
        where = ("--out", self.home / "out", "--runs", self.home / "runs")
        small = ("--rank", 2, "--batch-size", 4, "--keys", "self_attn.q_proj", "--steps", 4)
        return self.cli("train", *self.flags, *where, *small, *flags, code=code)

    @property
    def run(self) -> Path:
        """The one run."""
        (run,) = (self.home / "runs").iterdir()
        return run

    def ships_nothing(self) -> str:
        """The error of a run that diverged."""
        err = self.train(code=6).err
        assert not (self.home / "out").exists()
        (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert str(self.run) in error
        assert self.cli.json("runs", "show", self.run)["state"] == "diverged"
        return error


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, cli: Any) -> Place:
    write_data(tmp_path / "data")
    return Place(cli, tmp_path, tiny_model_dir)


def test_a_base_of_nan_learns_nothing_and_ships_nothing(place: Place) -> None:
    broken = shutil.copytree(place.model, place.home / "broken")
    (file,) = broken.glob("*.safetensors")
    weights: Any = mx.load(str(file))
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    assert "not finite in all 4 steps" in replace(place, model=broken).ships_nothing()


def test_a_validation_that_ends_not_finite_ships_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_itune.training.engine.step import Learner

    losses = iter([3.0, float("nan")])
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: next(losses))
    assert "validation loss after step 4 is not finite" in place.ships_nothing()


def test_another_tool_s_configuration_is_told_the_names_here(place: Place) -> None:
    config = place.home / "lora_config.yaml"
    config.write_text(
        "model: x\niters: 100\nlora_parameters:\n  rank: 8\n  scale: 20.0\nlr: 1e-5\n"
    )
    err = place.cli.refused("train", "--config", config, code=2)
    for words in ("is YAML", "iters is steps", "scale is alpha / rank", "lr is learning_rate"):
        assert words in err


def test_the_end_names_rows_the_shipped_step_the_report_and_the_next_command(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = place.home / "data"
    long = json.dumps({"prompt": "word " * 400, "completion": "yes"}) + "\n"
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text() + 3 * long)
    printed = place.train("--too-long", "drop", "--max-length", 300, "--warmup", 300)
    assert "3 of 27 rows are not used: longer than 300 tokens" in printed.err
    said = dict(re.split(r"  +|: ", line, maxsplit=1) for line in printed.out.splitlines())
    assert said["rows"] == "16 of 24 used, 3 not used"
    assert said["report"] == str(place.run / "report.html")
    assert said["adapter"] == f"{place.home / 'out'} (of step 4, the last)"
    flags = f"--model {place.model} --adapter {place.home / 'out'} --data {data}"
    assert said["next"] == f"mlx-itune eval {flags}"
    # One train loss, wherever it stands.
    shown = re.findall(r"train loss ([\d.]+)", printed.err)[-1]
    assert float(shown) == pytest.approx(float(said["train loss"]), rel=1e-3)
    place.cli("eval", *flags.split(), "--offline")

    monkeypatch.setenv("COLUMNS", "80")
    listed = place.cli("runs", "list", "--runs", place.home / "runs").out
    assert all(len(line) <= 80 and "…" not in line for line in listed.splitlines())
    assert place.run.name in listed and "finished" in listed and "4/4" in listed


def test_a_run_validates_as_often_as_a_tenth_of_it_pays_for_and_ships_the_best(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_itune.training.engine.step import Learner

    asked: list[int] = []

    def evaluate(self: Learner, examples: Any) -> float:
        asked.append(len(examples))
        return 3.0 + abs(len(asked) - 5)

    monkeypatch.setattr(Learner, "evaluate", evaluate)
    write_data(place.home / "more", 40, 60)
    often = ("--data", place.home / "more", "--steps", 500, "--learning-rate", "1e-5")
    printed = place.train(*often)
    # Of 500 times 4 rows' time a tenth is that of some 400 validated ones.
    (told,) = re.findall(r"60 to validate \((\d+) of them every (\d+) steps\)", printed.err)
    rows, every = map(int, told)
    assert 32 <= rows == asked[0] < 50 and 50 <= every <= 56
    # At the end on the others, too.
    assert set(asked[:-1]) == {rows} and asked[-1] == 60 - rows
    best = f"(of step {4 * every} of 500, the best: validation loss 3, the last step's "
    assert best in printed.out and "valid loss   " in printed.out
    assert "how many checkpoints stay is --keep-checkpoints" in place.cli.refused(
        "train", *place.flags, "--out", place.home / "x", "--keep", 3, code=2
    )


@pytest.mark.parametrize("step_s", [1.0, 1e-4])
def test_time_bounds_a_run_that_its_record_repeats(
    place: Place, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """As many steps as fit by the measured rate; fewer, where they take longer than that."""
    from mlx_itune.training.engine import time_limit

    took = time_limit.Rate(step_s, step_s / 10, 0.1)
    seen: list[Any] = []
    real = time_limit.measured
    monkeypatch.setattr(time_limit, "measured", lambda *given: seen.append(real(*given)) or took)
    bound = "20s" if step_s == 1 else "2s"
    told = place.train("--time", bound, "--steps", 3000).err
    assert f"--time {bound}: " in told and seen[0].step_s > 0 < seen[0].row_s
    again = ["--config", place.run / "config.toml"]
    if cut := re.search(r"--steps (\d+) --stop-at (\d+) repeats this run", told):
        again += ["--stop-at", cut[2]]
        assert cut[1] == "3000"
    else:
        assert 9 < int(re.findall(r"step \d+ of (\d+)", told)[-1]) < 19
    assert bool(cut) == (step_s < 1)
    place.cli("train", *again, "--out", place.home / "again", "--offline")
    one, other = (place.home / name / "adapters.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("flags", "said", "recorded"),
    [
        (
            ("--preset", "alpaca", "--learning-rate", "1e-3"),
            "batch 128 -> 8, so that 24 rows make 9 steps",
            {"batch_size": 8, "learning_rate": 1e-3, "epochs": 3.0},
        ),
        (
            ("--preset", "alpaca", "--batch-size", 128),
            "--epochs 50 would make 50",
            {"batch_size": 128},
        ),
        (
            ("--preset", "hermes", "--batch-size", 1),
            "warm-up 300 steps -> 7, a tenth of the run",
            {"warmup": 0.1, "learning_rate": 7e-5},
        ),
        (
            ("--preset", "hermes", "--warmup", 300),
            "all 9 steps are warm-up, as --warmup says",
            {"warmup": 300.0, "batch_size": 8},
        ),
        (("--adapter", "auto", "--steps", 1), "auto takes lora", {"adapter": "lora"}),
        (("--steps", 1), "", {"batch_size": 8, "warmup": 0.03, "learning_rate": 2e-3}),
        (("--steps", 8, "--early-stopping", 9), "", {"eval_every": 1, "eval_rows": 4}),
        (("--steps", 1, "--learning-rate", "auto"), "1 steps are too few", {"learning_rate": 2e-3}),
    ],
)
def test_what_is_left_open_is_decided_said_and_recorded(
    flags: tuple[object, ...], said: str, recorded: dict[str, Any], place: Place
) -> None:
    where = ("--out", place.home / "out", "--runs", place.home / "runs")
    small = ("--rank", 2, "--keys", "self_attn.q_proj")
    made = place.cli("train", *place.flags, *where, *small, *flags)
    assert said in made.err
    assert said in place.cli("plan", *place.flags, *small, *flags).out or "few" in said
    config = place.cli.json("runs", "show", place.run)["config"]
    assert {name: config[name] for name in recorded} == recorded
    assert place.cli.json("resume", place.run)["finished_before"]


@pytest.mark.parametrize(
    ("more", "kind"), [((), "grid"), (("--dropout", 0.1), "lora"), (("--keys", "norm"), "lora")]
)
def test_a_quantized_base_takes_a_grid_adapter_where_it_can(
    more: tuple[object, ...], kind: str, place: Place, tiny_quantized_dir: Path
) -> None:
    flags = ("--model", tiny_quantized_dir, "--data", place.home / "data", "--offline")
    assert f"auto takes {kind}" in place.cli("plan", *flags, "--adapter", "auto", *more).out


def test_a_searched_rate_is_recorded_and_trains_what_it_would_have_trained(place: Place) -> None:
    long = ("--steps", 100, "--learning-rate")
    printed = place.train(*long, "auto")
    tried = re.findall(r"learning rate (\S+): loss ([\d.]+) on the next rows", printed.err)
    first = place.run
    shown = place.cli.json("runs", "show", first)
    search = shown["result"]["learning_rate_search"]
    assert len(tried) == len(search["curve"]) == 3 and search["steps"] == 3
    assert f"auto takes {search['learning_rate']:g}: the trials took 9 steps" in printed.err
    assert shown["config"]["learning_rate"] == search["learning_rate"]
    assert "Learning rates that were tried" in (first / "report.html").read_text()
    adapter = (place.home / "out" / "adapters.safetensors").read_bytes()
    shutil.move(place.home, place.home.with_name("first"))
    write_data(place.home / "data") if place.home.mkdir() is None else None
    place.train(*long, search["learning_rate"])
    assert (place.home / "out" / "adapters.safetensors").read_bytes() == adapter


def test_a_plan_is_one_object_and_what_does_not_fit_exits_with_7(place: Place) -> None:
    plan = place.cli.json("plan", *place.flags)
    assert plan["fits"] is True and plan["time_per_epoch_s"] > 0
    assert plan.keys() >= {"time_from", "suggestions", "gradient_checkpointing"}
    parts = {"weights", "adapter", "optimizer", "gradients", "activations", "logits"}
    assert set(plan["breakdown"]) == parts
    assert sum(plan["breakdown"].values()) == plan["peak_memory_bytes"]
    small = (*place.flags, "--memory-gb", 0.0005)
    plan = place.cli.json("plan", *small, code=7)
    assert plan["fits"] is False and plan["limit_bytes"] == 500_000
    assert all(s.keys() == {"change", "peak_memory_bytes", "fits"} for s in plan["suggestions"])
    told = place.cli("plan", *small, code=7).out
    assert "does not fit" in told and "try " in told
    out, runs = place.home / "out", place.home / "runs"
    assert "memory" in place.cli.refused("train", *small, "--out", out, "--runs", runs, code=7)
    assert not out.exists() and not runs.exists()
