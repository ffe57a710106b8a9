"""Settings: every fault at once, the same names in flags and file, presets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest

from mlx_itune.kit.config import from_toml, to_toml
from mlx_itune.kit.errors import UsageError
from mlx_itune.training.settings import PRESETS, TrainSettings, settings_from

VALUES: dict[str, Any] = {"model": "m", "data": Path("d"), "out": Path("o")}


def test_flags_and_fields_have_the_same_names_and_choices() -> None:
    from mlx_itune.cli.train import command

    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    flags = {parameter.name for parameter in command.params}
    assert flags - fields == {"config", "as_json", "samples", "tensorboard", "wandb"}
    assert fields - flags == set()
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and parameter.name != "preset":
            name = str(parameter.name)
            for choice in parameter.type.choices:
                assert getattr(settings_from({**VALUES, name: choice}), name) == choice
            with pytest.raises(UsageError) as caught:
                settings_from({**VALUES, name: "no-such"})
            listed = str(caught.value).partition("must be one of ")[2].partition(", not ")[0]
            assert sorted(listed.split(", ")) == sorted(parameter.type.choices)


FAULTS: dict[str, dict[str, Any]] = {
    "num_layers": {"num_layers": 0},
    "save_every_s": {"save_every_s": -1.0},
    "keep": {"keep": 0},
    "memory_gb": {"memory_gb": 0.0},
    "lora_plus_ratio": {"lora_plus_ratio": 0.0},
    "lora_plus_ratio times learning_rate": {"lora_plus_ratio": 1e4},
    "packing": {"packing": "maybe"},
    "early_stopping needs eval_every": {"early_stopping": 2},
    "dropout must be 0 with adapter grid": {"adapter": "grid", "dropout": 0.1},
    "weight_decay must be 0 with adam": {"optimizer": "adam", "weight_decay": 0.1},
    "did you mean betas": {"optimizer_options": ("beta=1,2",)},
    "learning_rate": {"learning_rate": float("nan")},
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_makes_no_sense_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from({**VALUES, **FAULTS[words]})


def test_every_fault_is_named_at_once() -> None:
    faults: dict[str, Any] = {"keep": 0, "adapter": "grd", "optimizer": "adm", "early_stopping": 1}
    with pytest.raises(UsageError) as caught:
        settings_from({**VALUES, **faults})
    assert all(name in str(caught.value) for name in faults)


def test_a_file_gives_back_what_it_was_written_from(tmp_path: Path) -> None:
    settings = settings_from(
        {
            **VALUES,
            "adapter": "grid",
            "keys": ("q_proj", "*.mlp.*"),
            "optimizer": "lion",
            "optimizer_options": ("betas=0.9,0.95",),
            "lora_plus_ratio": 16.0,
            "early_stopping": 3,
            "eval_every": 50,
            "memory_gb": 8.0,
            "packing": "off",
        }
    )
    (tmp_path / "c.toml").write_text(to_toml(settings))
    assert settings_from(from_toml(tmp_path / "c.toml", TrainSettings)) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_complete_and_give_way(preset: Any) -> None:
    chosen = settings_from({**VALUES, "preset": preset})
    for name, value in PRESETS[preset].items():
        assert getattr(chosen, name) == value
    assert 5e-5 <= chosen.learning_rate <= 2e-4
    assert settings_from({**VALUES, "preset": preset, "rank": 4, "epochs": 1.0}).epochs == 1.0
    # What an adapter or optimizer does not have, a preset does not ask of it.
    assert settings_from({**VALUES, "preset": preset, "adapter": "grid"}).dropout == 0
    assert settings_from({**VALUES, "preset": preset, "optimizer": "adam"}).weight_decay == 0


def test_the_scale_of_each_adapter() -> None:
    scales = {
        kind: settings_from({**VALUES, "rank": 16, "alpha": 8.0, "adapter": kind}).scale
        for kind in ("lora", "rslora", "dora", "grid", "qalora")
    }
    assert scales.pop("rslora") == 2.0
    assert set(scales.values()) == {0.5}
