"""Event logs, configuration files, offline mode."""

import json
import math
import os
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.kit.events import EventLog
from mlx_itune.kit.network import go_offline
from mlx_itune.kit.settings import from_toml, to_toml


def test_events_are_versioned_lines_that_survive_reopening(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit("step", step=1, loss=0.5)
    with EventLog(path) as log:
        log.emit("end", note="line\nbreak \u2028 \ud800", at=Path("a/b"), deep={"x": [-math.inf]})
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines[-1] == "" and len(lines) == 3
    first = json.loads(lines[0])
    assert datetime.fromisoformat(first.pop("time")).utcoffset() == timedelta(0)
    assert first == {"v": 1, "event": "step", "step": 1, "loss": 0.5}
    assert json.loads(lines[1])["at"] == "a/b" and json.loads(lines[1])["deep"] == {"x": [None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.emit("late")
    with pytest.raises(StorageError, match="No such file"):
        EventLog(tmp_path / "no" / "e")


@dataclass(frozen=True)
class Settings:
    model: str = "starter"
    out: Path = Path("a")
    steps: int | None = None
    learning_rate: float = 1e-4
    offline: bool = False
    schedule: Literal["cosine", "linear"] = "cosine"
    keys: tuple[str, ...] = ()


def test_a_config_survives_the_round_trip(tmp_path):
    path = tmp_path / "run.toml"
    settings = Settings('q"\\\n\x7fé', Path("b c"), 7, 2e-5, True, "linear", ("x", "y"))
    for each in (settings, Settings()):
        path.write_text(to_toml(each), encoding="utf-8")
        assert Settings(**from_toml(path, Settings)) == each
    # Keys may be spelled like flags, and whole numbers are numbers.
    path.write_text("learning-rate = 1\n")
    assert repr(from_toml(path, Settings)) == "{'learning_rate': 1.0}"


def test_every_mistake_is_told_at_once_with_its_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("model = 'm'\nlerning_rate = 1\nsteps = true\nschedule = 'cosin'\n\n[x]\ny=1\n")
    with pytest.raises(UsageError) as caught:
        from_toml(path, Settings)
    line = str(caught.value)
    assert line.startswith(f"{path}:2: unknown key 'lerning_rate' (did you mean learning_rate?)")
    assert "line 3: steps: a whole number is needed, not true" in line
    assert "line 4: schedule: 'cosine' or 'linear' is needed" in line
    assert "line 6: unknown key 'x'" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = ", "not a TOML file"),
        ("model = 'a'\nmodel = 'b'\n", "not a TOML file"),
        ("\ud800", "not a TOML file"),
        ("learning-rate = 1.0\nlearning_rate = 2.0\n", "set twice"),
    ],
)
def test_what_is_no_flat_toml_is_a_usage_error(tmp_path, text, told):
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=told):
        from_toml(path, Settings)


def test_going_offline_sets_what_the_libraries_read(monkeypatch):
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    for name in names:
        monkeypatch.setenv(name, "0")
    go_offline()
    assert [os.environ[name] for name in names] == ["1", "1", "1"]
