"""`--samples`: held-out rows answered before and after, told as events and shown by the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.api.training import add_samples
from mlx_itune.cli.progress import Progress
from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.sources import load_splits
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.opening import Opening, open_model
from mlx_itune.training.engine.loop import train
from mlx_itune.training.settings import settings_from


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(n, task):
    return {"question": f"Dose of {task} {n}?", "answer": f"{n} mg of {task}", "task": task}


@pytest.fixture(scope="module")
def trained(tiny_quantized_dir, tmp_path_factory):
    """The settings of a run, and what it did."""
    home = tmp_path_factory.mktemp("sampled")
    (home / "data").mkdir()
    write(home / "data" / "train.jsonl", [row(n, "a") for n in range(16)])
    write(home / "data" / "valid.jsonl", [row(1, "a"), row(2, "a"), row(3, "b"), row(4, "a")])
    few = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "offline": True}
    places = {"data": home / "data", "out": home / "adapter", "runs": home / "runs"}
    settings = settings_from({"model": str(tiny_quantized_dir), **places, **few})
    return settings, train(settings)


def told(run):
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "sample"]


def test_rows_of_different_tasks_are_answered_by_both_models(trained):
    settings, result = trained
    run, adapter = Path(result.run), Path(result.adapter)
    with Progress() as progress:
        assert add_samples(settings, result, 3, progress.training) == 3
    events = told(run)
    assert [event["row"] for event in events] == ["valid.jsonl:1", "valid.jsonl:3", "valid.jsonl:2"]
    assert [event["task"] for event in events] == ["a", "b", "a"]
    assert (events[1]["prompt"], events[1]["reference"]) == ("Dose of b 3?", "3 mg of b")
    for key, with_adapter in (("before", None), ("after", adapter)):
        loaded, tokenizer = open_model(Opening(settings.model, with_adapter))
        prompt = tokenizer.prompt_ids([Turn("user", "Dose of b 3?")])
        alone = "".join(Generator(loaded, tokenizer).stream(prompt, max_tokens=8))
        assert alone and events[1][key].startswith(alone)
    assert events[1]["before"] != events[1]["after"]
    # Asked again, a row is shown once.
    for _ in range(2):
        page = (run / "report.html").read_text()
        assert "Before and after" in page and page.count('class="sample"') == 3
        with Progress() as progress:
            add_samples(settings, result, 1, progress.training)


def test_what_goes_wrong_is_a_warning(trained, tmp_path, capsys):
    settings, result = trained
    run, gone = Path(result.run), replace(result, adapter=str(tmp_path / "none"))
    before = (run / "events.jsonl").read_bytes()
    with Progress() as progress:
        assert add_samples(settings, gone, 0, progress.training) == 0
        assert add_samples(settings, gone, 2, progress.training) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: no answers for the report: ") and err.count("\n") == 1
    assert (run / "events.jsonl").read_bytes() == before


def test_a_single_file_gives_rows_it_held_out(trained, tmp_path):
    settings, result = trained
    said = ("system", "Be short."), ("user", "Dose?"), ("assistant", "5 mg"), ("user", "At night?")
    turns = [{"role": role, "content": content} for role, content in said]
    rows = [{"messages": [*turns, {"role": "assistant", "content": f"{n} mg"}]} for n in range(40)]
    data = write(tmp_path / "rows.jsonl", rows)
    single = settings_from({**vars(settings), "data": data})
    held = {row.turns[-1].content for row in load_splits(data, seed=single.seed).valid}
    with Progress() as progress:
        count = add_samples(single, replace(result, run=str(tmp_path)), 99, progress.training)
    events = told(tmp_path)
    assert count == len(events) == len(held)
    assert {event["reference"] for event in events} == held
    prompt = "system: Be short.\n\nuser: Dose?\n\nassistant: 5 mg\n\nuser: At night?"
    assert events[0]["prompt"] == prompt
