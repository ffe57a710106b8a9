"""Settings: every fault at once, the same names in flags and file, presets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.kit.errors import UsageError
from mlx_itune.training.settings import PRESETS, Setting, settings_from, table

VALUES: dict[str, Any] = {"model": "m", "data": Path("d"), "out": Path("o")}


def test_flags_and_fields_have_the_same_names() -> None:
    from mlx_itune.cli.train import command

    flags = {parameter.name for parameter in command.params}
    assert flags - set(table()) == {"config", "as_json", "samples", "tensorboard", "wandb"}
    assert set(table()) - flags == set()


@pytest.mark.parametrize("setting", [s for s in table().values() if s.choices or s.bounds])
def test_a_setting_is_what_its_table_allows(setting: Setting) -> None:
    name, bad = setting.name, [math.nan, math.inf, -math.inf, -2, 10**30]
    if setting.choices:
        good: Any = [choice for choice in setting.choices if choice != "hermes"]
        bad = ["no-such"]
    else:
        assert setting.bounds is not None
        assert setting.bounds.ge is not None or not setting.admits(setting.bounds.gt)
        high = setting.bounds.le
        good = [] if high is None or name == "lora_plus_ratio" else [high]
    for value in good:
        assert getattr(settings_from({**VALUES, name: value}), name) == value
    for value in bad:
        with pytest.raises(UsageError, match=name):
            settings_from({**VALUES, name: value})


def test_the_table_of_the_documentation_is_this_one() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "defaults.md").read_text()
    for setting in table().values():
        cells = (f"`{setting.flag}`", setting.shown_default, setting.allowed, setting.help)
        line = "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
        assert line in documented


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"lora_plus_ratio": 1e4}, "lora_plus_ratio times learning_rate"),
        ({"early_stopping": 2, "eval_every": 0}, "early_stopping needs eval_every"),
        ({"keep": "2"}, "--keep-checkpoints"),
        ({"adapter": "grid", "dropout": 0.1}, "dropout must be 0 with adapter grid"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "weight_decay must be 0 with adam"),
        ({"optimizer_options": ("beta=1,2",)}, "did you mean betas"),
        ({"rnak": 4}, "did you mean rank"),
        ({"lora_alpha": 4}, "did you mean alpha"),
        ({"preset": "alpacca"}, "did you mean alpaca"),
        # Every fault is named at once.
        ({"keep": "all", "adapter": "grd"}, "keep.*adapter|adapter.*keep"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from({**VALUES, **given})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_complete_and_give_way(preset: Any) -> None:
    chosen = settings_from({**VALUES, "preset": preset})
    for name, value in PRESETS[preset].items():
        told = {"batch_size": "rows_per_step", "warmup": "rise"}
        assert getattr(chosen, told.get(name, name)) == value
    assert 5e-5 <= chosen.learning_rate <= 2e-4
    assert settings_from({**VALUES, "preset": preset, "rank": 4, "epochs": 1.0}).epochs == 1.0
    assert settings_from({**VALUES, "preset": preset, "steps": 9}).planned_epochs is None
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
