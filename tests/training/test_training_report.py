"""report.html: read as a browser would, its curves and numbers against the events it came from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_page import CURVES, Page, line, page_of, run_of, step

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import StorageError
from mlx_itune.training.engine.loop import train
from mlx_itune.training.run import report
from mlx_itune.training.settings import settings_from

HOSTILE = "</script><img src=x onerror=alert(1)>\"' & \x00\u202e ]]> <!-- </style></pre> \ud800"
TAGS = set(
    "html head meta title style body main header section article div h1 h2 h3 p dl dt dd details "
    "summary table thead tbody tr th td pre span figure svg text line polyline circle rect".split()
)


@pytest.fixture(scope="module")
def finished(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of 16 steps."""
    home = tmp_path_factory.mktemp("reported")
    data = home / "data"
    data.mkdir()
    for name, count in (("train", 32), ("valid", 4)):
        rows = [{"prompt": f"Dose {name} {n}?", "completion": f"{n} mg"} for n in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{name}.jsonl").write_text(text)
    values = {
        "model": str(tiny_quantized_dir),
        "data": data,
        "out": home / "adapter",
        "runs": home / "runs",
        "steps": 16,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "eval_every": 4,
        "save_every": 8,
        "offline": True,
    }
    return Path(train(settings_from(values)).run)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    told = [json.loads(text) for text in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in told if event["event"] == kind]


def test_a_real_run_shows_its_curves_with_the_right_last_values(finished: Path) -> None:
    page = Page(report.write(finished))
    assert list(page.charts) == CURVES
    last, valid = events(finished, "step")[-1], events(finished, "valid")
    for title, name, key in (
        ("Loss", "each step", "loss"),
        ("Learning rate", "learning rate", "learning_rate"),
        ("Gradient norm", "before clipping", "gradient_norm"),
        ("Learned tokens per second", "learned tokens", "supervised_tokens_per_second"),
        ("All tokens per second", "all tokens", "tokens_per_second"),
    ):
        assert f"{name}: {last[key]:.4g} at 16" in page.charts[title], page.charts[title]
    assert f"validation: {valid[-1]['loss']:.4g} at 16" in page.charts["Loss"]
    assert any(told.startswith("smoothed: ") for told in page.charts["Loss"])


def test_a_real_run_shows_its_numbers_data_and_settings(finished: Path, tmp_path: Path) -> None:
    page = Page(report.write(finished))
    (end,), (start,) = events(finished, "end"), events(finished, "start")
    valid = [event["loss"] for event in events(finished, "valid")]
    assert page.card("validation loss") == f"{valid[0]:.4g} → {valid[-1]:.4g}"
    assert page.card("training loss at the end") == f"{end['train_loss']:.4g}"
    assert page.card("steps") == "16"
    assert page.card("epochs") == "2"
    assert page.card("learned tokens") == f"{end['supervised_tokens']:,}"
    assert page.card("peak memory") == f"{end['peak_memory_bytes'] / 1e6:,.1f} MB"
    assert page.card("rows to train on") == "32"
    assert page.card("validation examples") == "4"
    assert page.card("trainable parameters") == f"{start['trainable_parameters']:,}"
    assert page.card("learning-rate") == "0.005"
    assert page.card("train.jsonl") == "32"
    told = page.told()
    assert "finished" in told
    assert "step-000016 | kept" in told
    # The page can be shown to anybody.
    source = (finished / report.NAME).read_text()
    assert str(finished.parent.parent) not in source
    assert start["run"] not in source


def test_the_page_loads_and_runs_nothing(finished: Path) -> None:
    page = Page(report.write(finished))
    assert page.tags <= TAGS, page.tags - TAGS
    assert not {"src", "href", "srcset", "action", "style"} & page.attributes
    assert not any(name.startswith("on") for name in page.attributes)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert page.policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert not re.search(r"url\(|@import|http", page.style)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    told = {"row": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE, "before": HOSTILE}
    run = run_of(
        tmp_path,
        line(
            "start", run=HOSTILE, steps=2, report={"rows": 1, "split": [HOSTILE]}, x={"y": HOSTILE}
        ),
        step(1),
        line("incident", step=1, rows=[HOSTILE] * 20, suspects=[], note=HOSTILE),
        line("checkpoint", step=1, path=HOSTILE),
        line("sample", after=HOSTILE, task=HOSTILE, **told),
    )
    (run / "config.toml").write_bytes(
        f'model = "{HOSTILE}"\n{HOSTILE}\n'.encode("utf-8", "replace")
    )
    page = Page(report.write(run))
    assert page.tags <= TAGS, page.tags - TAGS
    assert not any(name.startswith("on") or name == "src" for name in page.attributes)
    assert page.told().count("<img src=x onerror=alert(1)>") >= 8
    assert "\x00" not in page.told() and "\u202e" not in page.told()


def test_a_run_without_a_step_or_an_event_has_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, line("start", steps=5))
    assert page.card("steps") == "0 of 5"
    assert "not finished" in page.told()
    assert "not finished" in page_of(tmp_path).told()


def test_a_folder_without_events_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"events\.jsonl"):
        report.write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (line("stopped", step=2, signal=2), "stopped after step 2"),
        (line("failed", step=2, message="x", exit_code=6), "ended by an error after step 2"),
        (line("end", train_loss=1.0), "finished"),
        (line("end", stopped_early=True, adapter_step=1), "the adapter is of step | 1"),
        (line("end", stopped_early=True, adapter_step=1), "finished early"),
        ("", "not finished"),
    ],
)
def test_the_page_says_how_the_run_ended(tmp_path: Path, ending: str, told: str) -> None:
    assert told in page_of(tmp_path, line("start", steps=9), step(1), step(2), ending).told()


def test_skipped_steps_and_incidents_are_told(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        line("start", steps=3),
        step(1),
        step(2, loss=None, gradient_norm=None, skipped=True),
        line("incident", step=2, loss="nan", rows=["/home/me/a.jsonl:7"], suspects=[]),
        step(3),
    )
    assert page.card("skipped steps") == "1"
    told = page.told()
    assert "step 2 | loss: nan" in told
    assert "a.jsonl:7" in told
    assert "/home/me" not in told


def test_answers_stand_beside_their_reference(tmp_path: Path) -> None:
    said = {"row": "valid.jsonl:3", "prompt": "Dose?", "reference": "5 mg"}
    page = page_of(
        tmp_path,
        line("sample", before="old", after="5 mg", **said),
        line("sample", before="Dose is", after="5  mg\n", task="dosing", **said),
    )
    told = page.told()
    assert "1. valid.jsonl:3, dosing" in told
    assert "2. valid" not in told
    assert "before | Dose is | after ✓ | 5  mg | reference | 5 mg" in told


def test_wild_values_are_told_and_do_not_flatten_the_rest(tmp_path: Path) -> None:
    norms = [1.0 + 0.1 * (n % 3) for n in range(300)]
    norms[200] = 5e6
    lines = [step(n + 1, gradient_norm=norm) for n, norm in enumerate(norms)]
    page = page_of(tmp_path, *lines)
    assert "the highest is 5e+06 at step 201" in page.told()
    raw = next(points for told, points in page.charts["Gradient norm"].items() if "before" in told)
    heights = [float(pair.split(",")[1]) for pair in raw.split()]
    assert max(heights) - min(heights) > 10


def test_a_report_is_made_again_from_the_folder_alone(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / finished.name
    shutil.copytree(finished, moved)
    (moved / report.NAME).unlink(missing_ok=True)
    shutil.rmtree(moved / "checkpoints")
    page = Page(report.write(moved))
    assert list(page.charts) == CURVES
    assert "step-000016 | removed" in page.told()
