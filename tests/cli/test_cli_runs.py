"""`runs` on finished, killed, stopped, running and damaged runs, and `resume`."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.kit.lock import locked
from tests.cli.conftest import ended, until
from tests.crash.small_run import write_data
from tests.crash.trainer import Trainer

SMALL = ("--rank", 2, "--batch-size", 4, "--keys", "self_attn.q_proj", "--offline")


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, the second with a step's end that a kill would leave, the third stopped."""
    home = tmp_path_factory.mktemp("runs")
    source = ("--model", tiny_model_dir, "--data", write_data(home / "data"), *SMALL)
    for name in "abc":
        places = ("--out", home / name, "--runs", home / "runs", "--seed", ord(name))
        steps = ("--steps", 6, "--keep-checkpoints", 3, "--save-every", 2)
        assert ended("train", *source, *places, *steps) == 0
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


def test_the_list_says_how_each_run_stands(cli: Any, runs: Path) -> None:
    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cli.json("runs", "list", "--runs", runs)["runs"]
        return found

    first, second, third = listed()
    assert [r["state"] for r in (first, second, third)] == ["finished", "killed", "stopped"]
    assert (first["step"], first["steps"], first["resume"]) == (6, 6, None)
    assert first["train_loss"] > 0 and first["valid_loss"] > 0 and first["bytes"] > 10_000
    assert second["resume"] == f"mlx-itune resume {second['run']}"
    assert (third["incidents"], third["checkpoints"]) == (1, 3)
    assert f"mlx-itune resume {third['run']}" in cli("runs", "list", "--runs", runs).out
    with locked(Path(second["run"]) / "lock", "it"):
        assert [run["state"] for run in listed()] == ["finished", "running", "stopped"]
    (Path(first["run"]) / "result.json").write_text('{"steps": "many"}')
    assert (listed()[0]["state"], listed()[0]["step"]) == ("finished", 6)
    assert "no runs" in cli("runs", "list", "--runs", runs / "none").out


def test_one_run_is_shown_whole(cli: Any, runs: Path) -> None:
    first = sorted(runs.iterdir())[0]
    found = cli.json("runs", "show", first)
    assert found["config"]["rank"] == 2 and found["result"]["steps"] == 6
    assert [seal["step"] for seal in found["checkpoint_list"]] == [2, 4, 6]
    assert [seal["best"] for seal in found["checkpoint_list"]].count(True) == 1
    shown = cli("runs", "show", first.name, "--runs", runs).out
    assert f"adapter     {found['result']['adapter']}" in shown
    shown = cli("runs", "show", "last", "--runs", runs).out
    for words in ("stopped", "step 2: loss nan", "rows.jsonl:3", "continue with: mlx-itune resume"):
        assert words in shown
    cli("runs", "show", first.name[:4], "--runs", runs, code=2)


def test_the_report_is_opened(cli: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or len(shown) < 2)
    first, _, third = sorted(runs.iterdir())
    assert cli("runs", "open", "--runs", runs).out == f"{third}/report.html\n"
    assert shown == [(third / "report.html").as_uri()]
    assert "by hand" in cli("runs", "open", first.name, "--runs", runs).out
    found = cli.json("runs", "open", first)
    assert (found["report"], found["opened"]) == (f"{first}/report.html", False)


def test_the_list_fits_a_terminal(cli: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for run in runs.iterdir():
        (run / "weights").write_bytes(b"")
        with (run / "weights").open("r+b") as file:
            file.truncate(25_300_000_000)
    lines = cli("runs", "list", "--runs", runs).out.splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if "continue with" in line)]
    assert max(map(len, (line.rstrip() for line in table))) <= 80
    for run in runs.iterdir():
        (line,) = (line for line in table if run.name in line)
        assert line.rstrip().endswith("25.3 GB") and "…" not in line


def test_a_run_is_an_adapter_that_knows_its_base(
    cli: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    first, second, third = sorted(runs.iterdir())
    asked = ("generate", "--prompt", "hello", "--max-tokens", 1)
    adapter = cli.json("runs", "show", first)["result"]["adapter"]
    wanted = cli.json(*asked, "--adapter", adapter)["text"]
    for named in (first, first.name, f"runs/{first.name}"):
        assert cli.json(*asked, "--adapter", named)["text"] == wanted
    shutil.copy(first / "result.json", third)
    assert "the adapter was trained on" in cli(*asked, "--adapter", "last").err
    (third / "result.json").write_text('{"steps": "many"}')
    cli.refused(*asked, "--adapter", "last", code=5)
    assert f"resume {second}" in cli.refused(*asked, "--adapter", second, code=4)
    assert "no such adapter, and no such run" in cli.refused(*asked, "--adapter", "no", code=4)
    assert "--adapter that knows" in cli.refused(*asked, code=2)
    away = shutil.copytree(adapter, runs.parent / "away")
    shutil.rmtree(runs)
    assert "is not at hand; name it with --model" in cli.refused(*asked, "--adapter", away, code=4)


def test_a_flipped_byte_fails_the_verification(cli: Any, runs: Path) -> None:
    found = cli.json("runs", "verify", "--runs", runs)
    assert (len(found["checkpoints"]), found["broken"]) == (9, 0)
    first = sorted(runs.iterdir())[0]
    file = first / "checkpoints" / "step-000004" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert cli.json("runs", "verify", "--runs", runs, code=5)["broken"] == 1
    out = cli("runs", "verify", first.name, "--runs", runs, code=5).out
    assert "broken: " in out and "optimizer.safetensors: is not" in out and out.count("ok ") == 2


def test_prune_shows_first_and_removes_with_yes(cli: Any, runs: Path) -> None:
    def prune(*flags: object) -> Any:
        return cli.json("runs", "prune", "--runs", runs, *flags)

    def steps() -> list[str]:
        folders = [run / "checkpoints" for run in sorted(runs.glob("2*"))]
        return ["".join(sorted(path.name[-1] for path in each.iterdir())) for each in folders]

    first, second, third = sorted(runs.iterdir())
    leftover = first / "checkpoints" / ".step-000008.1-0123abcd.partial"
    leftover.mkdir()
    shown = prune()
    assert not shown["removed"] and len(shown["paths"]) == 7
    leftover.rmdir()
    assert "--yes removes them" in cli("runs", "prune", "--runs", runs).out
    assert steps() == ["246"] * 3
    with locked(first / "lock", "it"):
        prune("--yes")
    assert steps() == ["246", "6", "6"]
    assert prune(first.name, "--keep", 2, "--yes")["bytes"]
    assert steps() == ["46", "6", "6"]
    # Whole runs go only when asked, and unfinished ones only by name.
    prune("--keep-runs", 0, "--yes")
    assert sorted(runs.glob("2*")) == [second, third]
    prune("--keep-runs", 1, "--unfinished", "--yes")
    assert [*runs.glob("2*")] == [third]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_run_prints_the_line_that_continues_it(
    cli: Any, number: int, code: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    home, out = tmp_path / "runs", tmp_path / "out"
    source = ("--model", tiny_model_dir, "--data", write_data(tmp_path / "data"), *SMALL)
    log = tmp_path / "log.txt"
    trainer = Trainer(log, "train", *source, "--out", out, "--runs", home, "--steps", 80)
    until(
        lambda: any('"event": "step"' in told.read_text() for told in home.glob("2*/events.jsonl"))
    )
    trainer.kill(number)
    assert trainer.wait() == code
    said = log.read_text()
    (run,) = home.iterdir()
    assert f"; continue with: mlx-itune resume {run}\n" in said and "error:" not in said
    assert not out.exists()

    result = cli.json("resume", run)
    assert (result["steps"], result["finished_before"], result["rewritten"]) == (80, False, False)
    assert (out / "adapters.safetensors").is_file()


def test_a_finished_run_says_so_and_a_changed_one_is_refused(
    cli: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    data, places = (
        write_data(tmp_path / "data"),
        ("--out", tmp_path / "out", "--runs", tmp_path / "runs"),
    )
    cli("train", "--model", tiny_model_dir, "--data", data, *places, *SMALL, "--steps", 2)
    (run,) = (tmp_path / "runs").iterdir()
    again = cli("resume", run.name[:12], "--runs", tmp_path / "runs", "--offline")
    assert "nothing to do" in again.err and "adapter" in again.out
    moved = cli("resume", run, "--offline", "--out", tmp_path / "again")
    assert "written again" in moved.err and (tmp_path / "again").is_dir()
    (run / "result.json").unlink()
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text().replace("Yes", "No"))
    assert "data.train.sha256 (train.jsonl) is " in cli.refused("resume", run, code=3)
    for folder, said in ((tmp_path / "nowhere", "no such run"), (data, "is no run")):
        assert said in cli.refused("resume", folder, code=2)
