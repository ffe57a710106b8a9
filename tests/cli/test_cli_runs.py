"""`runs list|show|verify|prune` on a finished, a killed, a running and a damaged run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main
from mlx_itune.kit.lock import locked
from tests.crash.small_run import write_data

Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *argv: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def answer(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    left, out, err = call(capsys, *argv, "--json")
    assert left == code, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, the second with a step's end that a kill would leave, the third stopped."""
    home = tmp_path_factory.mktemp("runs")
    data = write_data(home / "data")
    for name in "abc":
        argv = [
            *("train", "--model", tiny_model_dir, "--data", data, "--out", home / name),
            *("--runs", home / "runs", "--rank", 2, "--steps", 6, "--batch-size", 4, "--keep", 3),
            *("--keys", "self_attn.q_proj", "--save-every", 2, "--offline", "--seed", ord(name)),
        ]
        with pytest.raises(SystemExit) as left:
            main([*map(str, argv)])
        assert not left.value.code
    _, second, third = sorted((home / "runs").iterdir())
    for run, kept in ((second, 7), (third, 6)):
        (run / "result.json").unlink()
        lines = (run / "events.jsonl").read_text().splitlines()[:kept]
        (run / "events.jsonl").write_text("".join(line + "\n" for line in lines))
    with (third / "events.jsonl").open("a") as log:
        log.write('{"v": 1, "event": "stopped", "step": 3}\n')
    (third / "incidents.jsonl").write_text(
        '{"step": 2, "loss": "nan", "gradient_norm": "inf", "rows": ["rows.jsonl:3"]}\n'
    )
    return home / "runs"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "runs")


def test_the_list_says_how_each_run_stands(capsys: Capture, runs: Path) -> None:
    listed = answer(capsys, "runs", "list", "--runs", runs)["runs"]
    assert [line["state"] for line in listed] == ["finished", "killed", "stopped"]
    first, second, third = listed
    assert (first["step"], first["steps"], first["resume"]) == (6, 6, None)
    assert first["train_loss"] > 0 and first["valid_loss"] > 0 and first["bytes"] > 10_000
    assert second["resume"] == f"mlx-itune resume {second['run']}"
    assert (third["incidents"], third["checkpoints"]) == (1, 3)
    code, out, _ = call(capsys, "runs", "list", "--runs", runs)
    assert code == 0 and "finished" in out and f"mlx-itune resume {third['run']}" in out
    with locked(Path(second["run"]) / "lock", "it"):
        states = [r["state"] for r in answer(capsys, "runs", "list", "--runs", runs)["runs"]]
        assert states == ["finished", "running", "stopped"]
    assert answer(capsys, "runs", "list", "--runs", runs / "none")["runs"] == []
    (Path(first["run"]) / "result.json").write_text('{"steps": "many"}')
    listed = answer(capsys, "runs", "list", "--runs", runs)["runs"]
    assert (listed[0]["state"], listed[0]["step"]) == ("finished", 6)
    assert "no runs" in call(capsys, "runs", "list", "--runs", runs / "none")[1]


def test_one_run_is_shown_whole(capsys: Capture, runs: Path) -> None:
    first = sorted(runs.iterdir())[0]
    found = answer(capsys, "runs", "show", first)
    assert found["config"]["rank"] == 2 and found["result"]["steps"] == 6
    assert [seal["step"] for seal in found["checkpoint_list"]] == [2, 4, 6]
    assert [seal["best"] for seal in found["checkpoint_list"]].count(True) == 1
    code, out, _ = call(capsys, "runs", "show", first.name, "--runs", runs)
    assert code == 0 and f"adapter     {found['result']['adapter']}" in out
    code, out, _ = call(capsys, "runs", "show", "last", "--runs", runs)
    assert code == 0
    for words in ("stopped", "step 2: loss nan", "rows.jsonl:3", "continue with: mlx-itune resume"):
        assert words in out
    assert call(capsys, "runs", "show", first.name[:4], "--runs", runs)[0] == 2


def test_a_flipped_byte_fails_the_verification(capsys: Capture, runs: Path) -> None:
    found = answer(capsys, "runs", "verify", "--runs", runs)
    assert (len(found["checkpoints"]), found["broken"]) == (9, 0)
    first = sorted(runs.iterdir())[0]
    file = first / "checkpoints" / "step-000004" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = answer(capsys, "runs", "verify", "--runs", runs, code=5)
    assert found["broken"] == 1
    code, out, _ = call(capsys, "runs", "verify", first.name, "--runs", runs)
    assert code == 5 and "broken: " in out and "optimizer.safetensors: is not" in out
    assert out.count("ok ") == 2


def test_prune_shows_first_and_removes_with_yes(capsys: Capture, runs: Path) -> None:
    def steps() -> list[list[str]]:
        return [
            sorted(path.name[-1] for path in (run / "checkpoints").iterdir())
            for run in sorted(runs.iterdir())
        ]

    before = steps()
    assert before == [["2", "4", "6"]] * 3
    first = sorted(runs.iterdir())[0]
    (first / "checkpoints" / ".step-000008.1-0123abcd.partial").mkdir()
    shown = answer(capsys, "runs", "prune", "--runs", runs)
    assert not shown["removed"] and len(shown["paths"]) == 7
    (first / "checkpoints" / ".step-000008.1-0123abcd.partial").rmdir()
    assert steps() == before
    code, out, _ = call(capsys, "runs", "prune", "--runs", runs)
    assert code == 0 and "--yes removes them" in out
    with locked(first / "lock", "it"):
        answer(capsys, "runs", "prune", "--runs", runs, "--yes")
    assert steps() == [["2", "4", "6"], ["6"], ["6"]]
    assert answer(capsys, "runs", "prune", first.name, "--runs", runs, "--keep", 2, "--yes")[
        "bytes"
    ]
    assert steps() == [["4", "6"], ["6"], ["6"]]


def test_whole_runs_go_only_when_asked_and_unfinished_ones_only_by_name(
    capsys: Capture, runs: Path
) -> None:
    first, second, third = sorted(runs.iterdir())
    answer(capsys, "runs", "prune", "--runs", runs, "--keep-runs", 0, "--yes")
    assert sorted(runs.iterdir()) == [second, third]
    flags = ("--keep-runs", 1, "--unfinished", "--yes")
    answer(capsys, "runs", "prune", "--runs", runs, *flags)
    assert [path for path in runs.iterdir() if not path.name.startswith(".")] == [third]
    assert not first.exists()
