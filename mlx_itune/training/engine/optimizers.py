"""Optimizers over all trainable arrays at once, and their state by name.

Every update here that works number by number gets one vector of all of them: some ten operations
a step, where one array after the other takes ten each. The formulas are mlx.optimizers' own.
Adafactor and Muon look at matrices and get them one by one.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.kit.wording import brief, did_you_mean
from mlx_itune.model.adapters.lowrank import apart
from mlx_itune.training.settings import TrainSettings

# What is made, and what of its defaults is ours.
_KINDS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "adamw": (optim.AdamW, {"bias_correction": True}),
    "adam": (optim.Adam, {"bias_correction": True}),
    "adamax": (optim.Adamax, {}),
    "lion": (optim.Lion, {}),
    "sgd": (optim.SGD, {"momentum": 0.9}),
    "rmsprop": (optim.RMSprop, {}),
    "adagrad": (optim.Adagrad, {}),
    "adadelta": (optim.AdaDelta, {}),
    "adafactor": (optim.Adafactor, {"relative_step": False, "scale_parameter": False}),
    "muon": (optim.Muon, {}),
}
_BY_MATRIX = ("adafactor", "muon")
# What is set here has a flag of its own, or would put the learning rate out of effect.
_TAKEN = ("self", "learning_rate", "weight_decay", "relative_step", "warmup_init")
_FLAGS = {"weight_decay": "--weight-decay", "learning_rate": "--learning-rate"}
# B of LoRA+ (2402.12354): the factors that start at zero.
_FAST = ("lora_b", "scale_b", "bias_b")
# DoRA's lengths are no deltas: decay would shrink the base itself.
_UNDECAYED = ("m",)


def options_from(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments of optimizer `name` from "key=value" pairs. Raises UsageError."""
    kind, ours = _KINDS[name]
    parameters = inspect.signature(kind.__init__).parameters
    known = {key: p.default for key, p in parameters.items() if key not in _TAKEN}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"optimizer_options must be key=value pairs, not {pair!r}")
        if key not in known:
            hint = did_you_mean(key, known) or "it knows " + ", ".join(sorted(known))
            hint = f"use {_FLAGS[key]}" if key in _FLAGS else hint
            raise UsageError(f"{name} has no option {key!r}", hint=hint)
        if key in options:
            raise UsageError(f"optimizer option {key!r} is given twice")
        options[key] = _value(f"{name}'s {key}", text, known[key])
    options = {**ours, **options}
    try:
        kind(learning_rate=0.0, **options)
    except ValueError as error:
        raise UsageError(brief(error)) from error
    return options


# All trained arrays as the optimizer holds them: a few float32 vectors, or matrices.
Held = list[mx.array]
States = list[dict[str, Any]]


class Updater:
    """An optimizer for one model's trainable arrays, those of one name in a layer together.

    Its functions are pure: what is learned and the optimizer's state go in and come out.
    """

    def __init__(self, parameters: Mapping[str, Any], settings: TrainSettings) -> None:
        kind = _KINDS[settings.optimizer][0]
        options = options_from(settings.optimizer, settings.optimizer_options)
        decays = "weight_decay" in inspect.signature(kind.__init__).parameters
        by_matrix = settings.optimizer in _BY_MATRIX
        layers: dict[str, dict[str, tuple[int, ...]]] = {}
        for path, array in tree_flatten(dict(parameters)):
            layer, _, leaf = path.rpartition(".")
            layers.setdefault(layer, {})[leaf] = array.shape
        alike: dict[Any, list[str]] = {}
        for layer, leaves in layers.items():
            alike.setdefault(tuple(leaves.items()), []).append(layer)
        # Layers that learn arrays of the same names and shapes, by their paths.
        self.kinds = list(alike.values())
        split: dict[str, list[_Run]] = {}
        for number, (leaves, names) in enumerate(alike.items()):
            for leaf, shape in leaves:
                split.setdefault(leaf, []).append((number, names, shape))
        self._groups = []
        for leaf, runs in split.items():
            ratio = settings.lora_plus_ratio if leaf in _FAST else 1.0
            decay = 0.0 if leaf in _UNDECAYED else settings.weight_decay
            more = {"weight_decay": decay} if decays else {}
            made: Any = kind(learning_rate=0.0, **options, **more)
            self._groups.append(_Group(made, ratio, leaf, runs, by_matrix))

    def hold(self, parameters: Mapping[str, Any]) -> Held:
        """A tree of arrays as this optimizer holds them."""
        named = dict(tree_flatten(dict(parameters)))
        return [array for group in self._groups for array in group.join(named)]

    def named(self, held: Held) -> dict[str, mx.array]:
        """The opposite: arrays by name, in their shapes."""
        found: dict[str, mx.array] = {}
        for group, mine in self._parts(held):
            found |= group.split(mine)
        return found

    def stacks(self, held: Held) -> list[dict[str, mx.array]]:
        """The same, for each of `kinds`: by name in a layer, those of all its layers as one array.
        They are views, and so is all that `apart` takes from one."""
        found: list[dict[str, mx.array]] = [{} for _ in self.kinds]
        for group, mine in self._parts(held):
            for number, stack in group.stacks(mine):
                found[number][group.leaf] = stack
        return found

    def start(self, held: Held) -> States:
        """The state before the first step."""
        return [group.start(mine) for group, mine in self._parts(held)]

    def update(
        self, held: Held, states: States, gradients: Held, learning_rate: mx.array
    ) -> tuple[Held, States]:
        """What is held after a step, and the state after it; lazily."""
        new, after = [], []
        parts = zip(self._parts(held), states, self._parts(gradients), strict=True)
        for (group, mine), state, (_, gradient) in parts:
            updated, changed = group.step(mine, state, gradient, learning_rate)
            new += updated
            after.append(changed)
        return new, after

    def arrays(self, states: States) -> dict[str, mx.array]:
        """The state by name: "step", and "<parameter>.<slot>" in the parameter's shape."""
        found = {"step": states[0]["step"]}
        for group, state in zip(self._groups, states, strict=True):
            found |= group.arrays(state)
        return found

    def restored(self, states: States, arrays: Mapping[str, mx.array]) -> States:
        """The states that gave `arrays`; states: any. Raises StorageError for a name or shape that
        is not ours."""
        expected = self.arrays(states)
        for name in sorted(expected.keys() ^ arrays.keys()):
            state = "is missing" if name in expected else "belongs to no parameter"
            raise StorageError(f"the optimizer's {name} {state}")
        for name, array in arrays.items():
            if array.shape != expected[name].shape:
                raise StorageError(
                    f"the optimizer's {name} is {array.shape}, not {expected[name].shape}"
                )
        pairs = zip(self._groups, states, strict=True)
        return [group.restored(state, arrays) for group, state in pairs]

    def _parts(self, held: Held) -> list[tuple[_Group, Held]]:
        rest = iter(held)
        return [(group, [next(rest) for _ in group.slots]) for group in self._groups]


# The number of a kind, its layers, and the shape that one array has in each of them.
_Run = tuple[int, list[str], tuple[int, ...]]


class _Group:
    """Parameters of one name in a layer, as all A: a vector, or arrays one by one."""

    def __init__(
        self,
        optimizer: optim.Optimizer,
        ratio: float,
        leaf: str,
        runs: list[_Run],
        by_matrix: bool,
    ) -> None:
        self._optimizer, self._ratio = optimizer, ratio
        self.leaf, self._runs = leaf, runs
        names = [layer for _, layers, _ in runs for layer in layers]
        self._names = [f"{layer}.{leaf}" if layer else leaf for layer in names]
        self._by_matrix = by_matrix
        # A tree's keys are split at dots, so what the optimizer sees has none.
        self.slots = [f"p{index}" for index in range(len(names))] if by_matrix else ["all"]

    def join(self, named: Mapping[str, mx.array]) -> Held:
        """Arrays by name as this group's slots hold them; float32."""
        members = [named[name].astype(mx.float32) for name in self._names]
        return members if self._by_matrix else [mx.concatenate([a.reshape(-1) for a in members])]

    def split(self, held: Held) -> dict[str, mx.array]:
        """The opposite: named arrays, in their shapes."""
        if not self._by_matrix:
            held = [array for _, stack in self.stacks(held) for array in apart(stack)]
        return dict(zip(self._names, held, strict=True))

    def stacks(self, held: Held) -> Iterator[tuple[int, mx.array]]:
        """For each kind of layers its number, and its arrays as one."""
        counts = [len(layers) for _, layers, _ in self._runs]
        sizes = [len(layers) * math.prod(shape) for _, layers, shape in self._runs]
        rest = iter(held)
        # The gradient of a split is one concatenation, that of slices a whole vector for each.
        pieces = (
            [mx.stack([next(rest) for _ in range(count)]) for count in counts]
            if self._by_matrix
            else mx.split(held[0], [*itertools.accumulate(sizes)][:-1])
        )
        for (number, layers, shape), piece in zip(self._runs, pieces, strict=True):
            yield number, piece.reshape(len(layers), *shape)

    def start(self, held: Held) -> dict[str, Any]:
        """The state before the first step."""
        self._optimizer.init(self._tree(held))
        return self._taken()

    def step(
        self, held: Held, state: dict[str, Any], gradients: Held, learning_rate: mx.array
    ) -> tuple[Held, dict[str, Any]]:
        """What is held after a step, and the state after it."""
        before = self._optimizer.state
        self._optimizer.state = tree_map(lambda a: a, state)
        self._optimizer.state["learning_rate"] = learning_rate * self._ratio
        updated = self._optimizer.apply_gradients(self._tree(gradients), self._tree(held))
        after = self._taken()
        # What is traced must not stay.
        self._optimizer.state = before
        return [updated[slot] for slot in self.slots], after

    def arrays(self, state: Mapping[str, Any]) -> dict[str, mx.array]:
        """This group's state by parameter and slot."""
        if self._by_matrix:
            return {
                f"{name}.{key}": array
                for name, slot in zip(self._names, self.slots, strict=True)
                for key, array in state[slot].items()
            }
        return {
            f"{name}.{key}": array
            for key, vector in state["all"].items()
            for name, array in self.split([vector]).items()
        }

    def restored(self, state: Mapping[str, Any], arrays: Mapping[str, mx.array]) -> dict[str, Any]:
        """The state that gave `arrays`."""
        made: dict[str, Any] = {"step": arrays["step"].astype(mx.uint64)}
        for slot, name in zip(self.slots, self._names, strict=False):
            if self._by_matrix:
                made[slot] = {key: arrays[f"{name}.{key}"] for key in state[slot]}
            else:
                made[slot] = {
                    key: self.join({n: arrays[f"{n}.{key}"] for n in self._names})[0]
                    for key in state[slot]
                }
        return made

    def _tree(self, held: Held) -> dict[str, mx.array]:
        return dict(zip(self.slots, held, strict=True))

    def _taken(self) -> dict[str, Any]:
        return {k: v for k, v in self._optimizer.state.items() if k in ("step", *self.slots)}


def _value(what: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"{what} must be true or false, not {text!r}")
    if isinstance(default, (list, tuple)):
        values = [_number(what, part, float) for part in text.split(",")]
        if len(values) != len(default):
            raise UsageError(f"{what} must be {len(default)} numbers, as 0.9,0.99, not {text!r}")
        return values
    return _number(what, text, int if type(default) is int else float)


def _number(what: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{what} must be a number, not {text!r}")
    return value
