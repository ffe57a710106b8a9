"""`sweep` goes on where it was stopped, and its runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.training import sweeping
from tests.cli.conftest import ended

FEW = "--model starter --steps 4 --batch-size 2 --max-length 128".split()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"prompt": f"Say {n}", "completion": f"It is {n}."} for n in range(12)]
    for name, part in (("train", rows[:8]), ("valid", rows[8:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def test_a_stopped_sweep_goes_on_bit_for_bit(
    cli: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sweep", "--data", data, *FEW, "--over", "learning_rate=1e-4,3e-3", "rank=2,4"]
    advance, done = sweeping.Halving._trained, []

    def stopped(self: Any, place: int, *more: Any) -> Path:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(place)
        return advance(self, place, *more)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Halving, "_trained", stopped)
        assert ended(*command, "--offline") == 130
    made = cli.json(*command)
    # Seven pieces in four runs: none was begun anew.
    assert len(list(Path("sweep/runs").iterdir())) == 4
    best = made["best"]
    assert best["settings"]["learning_rate"] == 3e-3 and best["low"] < best["score"] < best["high"]
    assert [run["state"] for run in made["runs"]] == ["finished", *["stopped"] * 3]
    assert sorted(len(run["scores"]) for run in made["runs"]) == [1, 1, 2, 3]
    alone = ["--learning-rate", "3e-3", "--rank", best["settings"]["rank"], "--out", "alone"]
    cli("train", "--data", data, *FEW, *alone, "--offline")
    one, other = (
        Path(place, "adapters.safetensors").read_bytes() for place in ("alone", best["adapter"])
    )
    assert one == other
    assert cli.json(*command) == made
    assert "another over" in cli.refused(*command, "dropout=0,0.1", code=2)

    page = Path(made["page"]).read_text()
    assert "95 % interval" in page and page.count("<polyline") >= 4
    runs = ("--runs", "sweep/runs")
    first, second = (run["run"] for run in made["runs"][:2])
    cli("runs", "note", Path(first).name, "--name", "good", "--tag", "t", *runs)
    assert cli.json("runs", "best", "--tag", "t", *runs)["name"] == "good"
    assert "is another run" in cli.refused("runs", "note", second, "--name", "good", *runs, code=2)
    compared = cli("runs", "compare", "good", second, "--html", "c.html", *runs)
    assert "valid, step 0" in compared.out and "Settings that differ" in Path("c.html").read_text()


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ("rank", "'rank' is not KEY=VALUE,VALUE"),
        ("rnk=1,2", "'rnk' is no setting"),
        ("rank=x,2", "rank: 'x' is no int"),
        ("adapter=lora,full", "adapter must be one of"),
        ("model=a,b", "cannot differ in a sweep"),
        ("rank=8", "1 combinations; a sweep takes 2 to 64"),
    ],
)
def test_what_cannot_be_swept_is_one_line(cli: Any, data: Path, over: str, told: str) -> None:
    assert told in cli.refused("sweep", "--data", data, *FEW, "--over", over, code=2)


def test_halving_costs_a_fifth_of_the_grid() -> None:
    rounds = sweeping.rounds_of(12)
    assert [n for n, _ in rounds] == [12, 6, 3, 2, 1] and rounds[-1][1] == 1
    assert sweeping.cost(rounds) / 12 < 0.21


def test_rows_are_selected_and_random_is_always_tried(cli: Any, data: Path) -> None:
    flags = ["data", "select", "--model", "starter", "--data", data, "--count", 3]
    made = cli.json(*flags, "--by", "help", "--by", "loss-gain", "--steps", 2, "--out", "chosen")
    assert [each["by"] for each in made["tried"]] == ["help", "loss-gain", "random"]
    assert made["tried"][-1]["low"] is None and all(each["loss"] > 0 for each in made["tried"])
    lines = {
        name: Path(f"chosen/{name}.jsonl").read_text().splitlines() for name in ("train", "valid")
    }
    assert [len(lines["train"]), len(lines["valid"])] == [3, 4]
    record = json.loads(Path("chosen/dataset.json").read_text())
    assert record["settings"]["by"] == made["by"]
    assert record["left_out"] == {"select": 5}
    told = cli(*flags, "--by", "longest", "--steps", 1, "--out", "longest", "--offline").out
    assert "random is as good" in told or "+" not in told
    assert "--count 8 of 8" in cli.refused(*flags[:-1], 8, "--out", "all", code=2)
    cli("data", "check", "chosen")
