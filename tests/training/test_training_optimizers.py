"""Optimizers: mlx.optimizers' numbers, AdamW in NumPy, state by name, options."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.training.engine.optimizers import Updater, options_from
from mlx_itune.training.settings import table
from tests.training.learners import settings_of

NAMES = table()["optimizer"].choices
SHAPES = {
    "layers.0.q.lora_a": (12, 4),
    "layers.0.q.lora_b": (4, 6),
    "layers.0.q.m": (6,),
    "layers.1.experts.lora_a": (3, 4, 5),
    "layers.1.experts.lora_b": (3, 7, 4),
}
STEPS = 5
ORACLES: dict[str, Any] = {
    "adamw": lambda: optim.AdamW(0.0, weight_decay=0.0, bias_correction=True),
    "adam": lambda: optim.Adam(0.0, bias_correction=True),
    "adamax": lambda: optim.Adamax(0.0),
    "lion": lambda: optim.Lion(0.0),
    "sgd": lambda: optim.SGD(0.0, momentum=0.9),
    "rmsprop": lambda: optim.RMSprop(0.0),
    "adagrad": lambda: optim.Adagrad(0.0),
    "adadelta": lambda: optim.AdaDelta(0.0),
    "adafactor": lambda: optim.Adafactor(0.0, scale_parameter=False, relative_step=False),
    "muon": lambda: optim.Muon(0.0, weight_decay=0.0),
}


class Trained:
    """A network with an optimizer, and what both hold."""

    def __init__(self, name: str = "adamw", **more: Any) -> None:
        self.model = network()
        parameters = self.model.trainable_parameters()
        self.updater = Updater(parameters, settings_of(optimizer=name, **more))
        self.held = self.updater.hold(parameters)
        self.states = self.updater.start(self.held)

    def learn(self, step: int, rate: float) -> None:
        """One update by the gradients of a step."""
        vectors = self.updater.hold(gradients(step))
        self.held, self.states = self.updater.update(
            self.held, self.states, vectors, mx.array(rate)
        )

    def values(self) -> dict[str, Any]:
        """What is learned, by name."""
        return {name: np.array(a) for name, a in self.updater.named(self.held).items()}

    def state(self) -> dict[str, mx.array]:
        """The optimizer's state by name, as a file would have it."""
        arrays = self.updater.arrays(self.states)
        return {name: mx.array(np.array(array)) for name, array in arrays.items()}


def network(seed: int = 0) -> nn.Module:
    model = nn.Module()
    model.layers = [nn.Module(), nn.Module()]
    model.layers[0].q, model.layers[1].experts = nn.Module(), nn.Module()
    model.update(tree_unflatten(list(drawn(seed).items())), strict=False)
    for path, array in drawn(seed).items():
        *_, index, module, name = path.split(".")
        model.layers[int(index)][module][name] = array
    return model


def drawn(seed: int) -> dict[str, mx.array]:
    keys = mx.random.split(mx.random.key(seed), len(SHAPES))
    return {
        name: 0.1 * mx.random.normal(shape, key=key)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def gradients(step: int) -> Any:
    return tree_unflatten(list(drawn(100 + step).items()))


def values(model: nn.Module) -> dict[str, Any]:
    return {name: np.array(array) for name, array in tree_flatten(model.trainable_parameters())}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_mlx_optimizers_to_the_last_bit(name: str) -> None:
    ours, theirs, oracle = Trained(name), network(), ORACLES[name]()
    start = ours.values()
    for step in range(STEPS):
        rate = 1e-2 / (step + 1)
        ours.learn(step, rate)
        oracle.learning_rate = rate
        oracle.update(theirs, gradients(step))
    expected = values(theirs)
    assert all(np.array_equal(array, expected[n]) for n, array in ours.values().items())
    assert any(not np.array_equal(array, start[n]) for n, array in expected.items())


def test_adamw_is_the_paper_s() -> None:
    """1711.05101, algorithm 2, in float64; decay leaves DoRA's lengths alone."""
    ours = Trained(weight_decay=0.1)
    weights = {n: a.astype(np.float64) for n, a in ours.values().items()}
    first = {n: np.zeros_like(a) for n, a in weights.items()}
    second = {n: np.zeros_like(a) for n, a in weights.items()}
    for step in range(1, STEPS + 1):
        ours.learn(step, 1e-2)
        for n, gradient in drawn(100 + step).items():
            g = np.array(gradient, np.float64)
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g * g
            move = first[n] / (1 - 0.9**step)
            move /= np.sqrt(second[n] / (1 - 0.999**step)) + 1e-8
            decay = 0.0 if n.endswith(".m") else 0.1
            weights[n] -= 1e-2 * (move + decay * weights[n])
    assert all(np.abs(a - weights[n]).max() < 1e-6 for n, a in ours.values().items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_lora_plus_moves_b_by_its_own_rate(name: str) -> None:
    ours, slow, fast = Trained(name, lora_plus_ratio=16.0), Trained(name), Trained(name)
    for step in range(STEPS):
        for each, rate in ((ours, 1e-3), (slow, 1e-3), (fast, 16e-3)):
            each.learn(step, rate)
    for path, array in ours.values().items():
        expected = fast if path.endswith("lora_b") else slow
        assert np.array_equal(array, expected.values()[path]), path


@pytest.mark.parametrize("ratio", [1.0, 16.0])
@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back_by_name(name: str, ratio: float) -> None:
    whole, resumed = (Trained(name, lora_plus_ratio=ratio) for _ in range(2))
    for step in range(3):
        whole.learn(step, 1e-2)
    kept = whole.state()
    assert int(kept["step"].item()) == 3
    assert {slot.rpartition(".")[0] for slot in kept if slot != "step"} <= SHAPES.keys()
    resumed.held = resumed.updater.hold(whole.updater.named(whole.held))
    resumed.states = resumed.updater.restored(resumed.states, kept)
    for step in range(3, 5):
        whole.learn(step, 1e-2)
        resumed.learn(step, 1e-2)
    for one, other in ((whole.values(), resumed.values()), (whole.state(), resumed.state())):
        assert all(np.array_equal(np.array(a), np.array(other[n])) for n, a in one.items())


def test_a_state_that_is_not_ours_is_refused() -> None:
    ours = Trained()
    whole = ours.state()
    name = "layers.0.q.lora_a.m"
    for arrays, reason in (
        ({n: a for n, a in whole.items() if n != name}, f"{name} is missing"),
        ({n: a for n, a in whole.items() if n != "step"}, "step is missing"),
        ({**whole, "layers.9.v": mx.zeros(2)}, "belongs to no parameter"),
        ({**whole, name: mx.zeros((2, 2))}, r"is (2, 2), not (12, 4)"),
    ):
        with pytest.raises(StorageError, match=re.escape(reason)):
            ours.updater.restored(ours.states, arrays)


def test_gradients_of_what_is_held_are_those_of_its_parts() -> None:
    ours = Trained()

    def loss(held: Any) -> mx.array:
        named = ours.updater.named(held)
        # The last two are not used, and have a gradient of zeros.
        return sum((mx.sin(named[name]).sum() for name in [*SHAPES][:3]), mx.array(0.0))

    made = ours.updater.named(mx.grad(loss)(ours.held))
    for place, (name, array) in enumerate(ours.values().items()):
        expected = np.cos(array) if name in [*SHAPES][:3] else np.zeros_like(array)
        assert np.allclose(np.array(made[name]), expected, atol=1e-6), (place, name)


FAULTS: dict[str, tuple[str, list[str], str]] = {
    "no such option": ("adamw", ["beta=0.9,0.95"], "did you mean betas"),
    "an option of another": ("sgd", ["betas=0.9,0.95"], "sgd has no option 'betas'"),
    "a flag": ("adamw", ["weight_decay=0.1"], "use --weight-decay"),
    "the schedule's": ("adafactor", ["relative_step=true"], "has no option"),
    "no value": ("adamw", ["eps"], "key=value"),
    "no number": ("adamw", ["eps=tiny"], "must be a number"),
    "not finite": ("adamw", ["eps=inf"], "must be a number"),
    "one of two": ("adamw", ["betas=0.9"], "must be 2 numbers"),
    "out of range": ("adamw", ["betas=0.9,1.5"], "beta2"),
    "no truth": ("sgd", ["nesterov=yes"], "true or false"),
    "no whole number": ("muon", ["ns_steps=2.5"], "must be a number"),
    "twice": ("adamw", ["eps=1e-8", "eps=1e-7"], "given twice"),
    "do not go together": ("sgd", ["momentum=0", "nesterov=true"], "Nesterov"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_options_are_strict(fault: str) -> None:
    name, pairs, reason = FAULTS[fault]
    with pytest.raises(UsageError, match=reason):
        options_from(name, pairs)


def test_options_reach_the_optimizer() -> None:
    assert options_from("adamw", ["betas=0.9,0.95", "eps=1e-6"]) == {
        "bias_correction": True,
        "betas": [0.9, 0.95],
        "eps": 1e-6,
    }
    assert options_from("muon", ["ns_steps=3", "nesterov=false"])["ns_steps"] == 3
    assert options_from("adafactor", ["beta_1=0.9"])["beta_1"] == 0.9


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_for_those_that_have_it(name: str) -> None:
    kind: Any = type(ORACLES[name]())
    if "weight_decay" in inspect.signature(kind.__init__).parameters:
        Trained(name, weight_decay=0.1)
    else:
        with pytest.raises(UsageError, match="weight_decay must be 0"):
            Trained(name, weight_decay=0.1)
