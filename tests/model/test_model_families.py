"""This year's families: what is said to be exact for them is, and all of them train."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).parent))

from architectures import FAMILIES, bare, build

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.engine import probe as probing
from mlx_itune.model.engine.probe import exact_ways, probe
from mlx_itune.training.engine.footprint import Row
from tests.training.learners import learner_of

REFUSED = {"bitnet": "no linear layer to adapt"}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_known_of_a_family_is_what_a_trial_finds(name: str) -> None:
    if name in REFUSED:
        assert bare(name)
        with pytest.raises(ModelError, match=REFUSED[name]):
            build(name)
        return
    model = build(name)
    before = dict(tree_flatten(model.parameters()))
    known, found = exact_ways(model), probe(model)
    after = dict(tree_flatten(model.parameters()))
    assert all(after[path] is array for path, array in before.items())
    for way in ("head", "packing", "sharing", "checkpointing", "caches", "gap_tokens"):
        assert getattr(known, way) == getattr(found, way), (way, found.reasons)
    assert known.reasons.keys() == found.reasons.keys()
    learner = learner_of(model)
    row = Row(np.arange(5, 25, dtype=np.int32), np.ones(20, np.float32))
    loss = learner.evaluate([row])
    for _ in range(4):
        learner.step([row], 5e-3)
    learner.finish()
    assert learner.evaluate([row]) < loss


def test_what_a_trial_found_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ITUNE_CACHE", str(tmp_path))
    tried: list[object] = []
    monkeypatch.setattr(probing, "probe", lambda model: tried.append(model) or probe(model))

    def found(name: str = "ministral3/scaled", **more: object) -> probing.Exact:
        tried.clear()
        return exact_ways(build(name, **more))

    first = found()
    assert tried and not first.packing and first.reasons
    assert found() == first and not tried
    (file,) = (tmp_path / "probe").iterdir()
    for damage in ("{", '{"head": 1}', ""):
        file.write_text(damage)
        assert found() == first and tried
    assert found() == first and not tried
    assert found(rms_norm_eps=2e-5) and tried
    known = found("qwen3")
    assert not tried
    # With another mlx-lm than the proofs were made with, a known family is tried, too.
    monkeypatch.setattr(probing, "version", lambda _: "0.99.0")
    assert found("qwen3") == known and tried
    monkeypatch.setenv("MLX_ITUNE_CACHE", "off")
    assert found() == first and tried
