"""`--samples`: held-out rows answered before and after, told as events and shown by the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.cli.progress import Progress
from mlx_itune.cli.train import add_samples
from mlx_itune.dataset.conversation import Turn
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.opening import Opening, open_model
from mlx_itune.training.engine.loop import train
from mlx_itune.training.run.run import TrainResult
from mlx_itune.training.settings import TrainSettings, settings_from

Capture = pytest.CaptureFixture[str]
Trained = tuple[TrainSettings, TrainResult]


def row(n: int, task: str) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"Dose of {task} {n}?"},
        {"role": "assistant", "content": f"{n} mg of {task}"},
    ]
    return {"messages": turns, "task": task}


@pytest.fixture(scope="module")
def trained(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("sampled")
    (home / "data").mkdir()
    splits = {
        "train": [row(n, "a") for n in range(16)],
        "valid": [row(1, "a"), row(2, "a"), row(3, "b"), row(4, "a")],
    }
    for name, rows in splits.items():
        text = "".join(json.dumps(r) + "\n" for r in rows)
        (home / "data" / f"{name}.jsonl").write_text(text)
    settings = settings_from(
        {
            "model": str(tiny_quantized_dir),
            "data": home / "data",
            "out": home / "adapter",
            "runs": home / "runs",
            "steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "offline": True,
        }
    )
    return settings, train(settings)


def told(run: Path) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "sample"]


def test_rows_of_different_tasks_are_answered_by_both_models(trained: Trained) -> None:
    settings, result = trained
    run, adapter = Path(result.run), Path(result.adapter)
    with Progress() as progress:
        assert add_samples(settings, run, adapter, 3, progress) == 3
    events = told(run)
    assert [event["row"] for event in events] == ["valid.jsonl:1", "valid.jsonl:3", "valid.jsonl:2"]
    assert [event["task"] for event in events] == ["a", "b", "a"]
    assert events[1]["prompt"] == "Dose of b 3?"
    assert events[1]["reference"] == "3 mg of b"
    for key, with_adapter in (("before", None), ("after", adapter)):
        loaded, tokenizer = open_model(Opening(settings.model, with_adapter))
        prompt = tokenizer.prompt_ids([Turn("user", "Dose of b 3?")])
        alone = "".join(Generator(loaded, tokenizer).stream(prompt, max_tokens=8))
        assert alone and events[1][key].startswith(alone)
    assert events[1]["before"] != events[1]["after"]

    page = (run / "report.html").read_text()
    assert "Before and after" in page
    assert page.count('class="sample"') == 3
    # Asked again, a row is shown once.
    with Progress() as progress:
        add_samples(settings, run, adapter, 1, progress)
    assert (run / "report.html").read_text().count('class="sample"') == 3


def test_what_goes_wrong_is_a_warning(trained: Trained, tmp_path: Path, capsys: Capture) -> None:
    settings, result = trained
    before = (Path(result.run) / "events.jsonl").read_bytes()
    with Progress() as progress:
        assert add_samples(settings, tmp_path / "none", tmp_path / "none", 0, progress) == 0
        assert add_samples(settings, Path(result.run), tmp_path / "none", 2, progress) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: no answers for the report: ")
    assert err.count("\n") == 1
    assert (Path(result.run) / "events.jsonl").read_bytes() == before


def test_a_single_file_gives_rows_it_held_out(trained: Trained, tmp_path: Path) -> None:
    settings, result = trained
    data = tmp_path / "rows.jsonl"
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Dose?"},
        {"role": "assistant", "content": "5 mg"},
        {"role": "user", "content": "And at night?"},
    ]
    rows = [{"messages": [*turns, {"role": "assistant", "content": f"{n} mg"}]} for n in range(40)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "run").mkdir()
    single = settings_from({**vars(settings), "data": data})
    from mlx_itune.dataset.sources import load_splits

    held = {row.turns[-1].content for row in load_splits(data, seed=single.seed).valid}
    with Progress() as progress:
        count = add_samples(single, tmp_path / "run", Path(result.adapter), 99, progress)
    events = told(tmp_path / "run")
    assert count == len(events) == len(held)
    assert {event["reference"] for event in events} == held
    assert events[0]["prompt"] == (
        "system: Be short.\n\nuser: Dose?\n\nassistant: 5 mg\n\nuser: And at night?"
    )
