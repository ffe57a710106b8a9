"""Optimizers over all trainable arrays at once, and their state by name.

Every update here that works number by number gets one vector of all of them: some ten operations
a step, where one array after the other takes ten each. The formulas are mlx.optimizers' own.
Adafactor and Muon look at matrices and get them one by one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.kit.wording import brief, did_you_mean
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


class Updater:
    """An optimizer for one model's trainable arrays, in groups by learning rate and decay."""

    def __init__(self, parameters: Mapping[str, Any], settings: TrainSettings) -> None:
        kind = _KINDS[settings.optimizer][0]
        options = options_from(settings.optimizer, settings.optimizer_options)
        decays = "weight_decay" in inspect.signature(kind.__init__).parameters
        by_matrix = settings.optimizer in _BY_MATRIX
        split: dict[tuple[float, float], list[tuple[str, mx.array]]] = {}
        for path, array in tree_flatten(dict(parameters)):
            leaf = path.rsplit(".", 1)[-1]
            ratio = settings.lora_plus_ratio if leaf in _FAST else 1.0
            decay = 0.0 if leaf in _UNDECAYED else settings.weight_decay
            split.setdefault((ratio, decay), []).append((path, array))
        self._groups = []
        for (ratio, decay), members in split.items():
            more = {"weight_decay": decay} if decays else {}
            made: Any = kind(learning_rate=0.0, **options, **more)
            self._groups.append(_Group(made, ratio, members, by_matrix))

    def gather(self, gradients: Mapping[str, Any]) -> list[mx.array]:
        """A tree of gradients as a few float32 vectors, the form that `apply` takes."""
        named = dict(tree_flatten(dict(gradients)))
        return [array for group in self._groups for array in group.join(named)]

    def norm(self, vectors: Sequence[mx.array]) -> mx.array:
        """The Euclidean length of all gradients together; a lazy float32 scalar."""
        return mx.sqrt(mx.stack([mx.square(vector).sum() for vector in vectors]).sum())

    def apply(
        self,
        model: nn.Module,
        vectors: Sequence[mx.array],
        learning_rate: float,
        *,
        factor: float = 1.0,
    ) -> None:
        """Update the model from gathered gradients times `factor`; state and arrays evaluated."""
        parameters = dict(tree_flatten(model.trainable_parameters()))
        rest = list(vectors)
        updated: list[tuple[str, mx.array]] = []
        for group in self._groups:
            mine = [rest.pop(0) for _ in group.slots]
            if factor != 1.0:
                mine = [vector * factor for vector in mine]
            updated += group.step(mine, group.join(parameters), learning_rate)
        model.update(tree_unflatten(updated))
        mx.eval([array for _, array in updated], [group.optimizer.state for group in self._groups])

    def arrays(self) -> dict[str, mx.array]:
        """The state by name: "step", and "<parameter>.<slot>" in the parameter's shape."""
        found = {"step": self._groups[0].optimizer.step}
        for group in self._groups:
            found |= group.arrays()
        return found

    def restore(self, arrays: Mapping[str, mx.array]) -> None:
        """Put back what `arrays` gave. Raises StorageError for a name or shape that is not ours."""
        expected = self.arrays()
        for name in sorted(expected.keys() ^ arrays.keys()):
            state = "is missing" if name in expected else "belongs to no parameter"
            raise StorageError(f"the optimizer's {name} {state}")
        for name, array in arrays.items():
            if array.shape != expected[name].shape:
                raise StorageError(
                    f"the optimizer's {name} is {array.shape}, not {expected[name].shape}"
                )
        for group in self._groups:
            group.restore(arrays)
        mx.eval([group.optimizer.state for group in self._groups])


class _Group:
    """Parameters with one learning rate and one decay: a vector, or arrays one by one."""

    def __init__(
        self,
        optimizer: optim.Optimizer,
        ratio: float,
        members: Sequence[tuple[str, mx.array]],
        by_matrix: bool,
    ) -> None:
        self.optimizer, self.ratio = optimizer, ratio
        self.shapes = {name: tuple(array.shape) for name, array in members}
        self.by_matrix = by_matrix
        # A tree's keys are split at dots, so what the optimizer sees has none.
        self.slots = [f"p{index}" for index in range(len(members))] if by_matrix else ["all"]
        self.ends = [0]
        for _, array in members:
            self.ends.append(self.ends[-1] + array.size)
        # The last update as it came, and the arrays it was cut into: no need to join them again.
        self._whole: list[mx.array] = []
        self._pieces: dict[str, mx.array] = {}
        start = self.join(dict(members))
        optimizer.init(dict(zip(self.slots, start, strict=True)))

    def join(self, named: Mapping[str, mx.array]) -> list[mx.array]:
        """Arrays by name as this group's slots hold them; float32."""
        if self._pieces and all(named[name] is self._pieces[name] for name in self.shapes):
            return self._whole
        members = [named[name].astype(mx.float32) for name in self.shapes]
        if self.by_matrix:
            return members
        return [mx.concatenate([array.reshape(-1) for array in members])]

    def split(self, held: Sequence[mx.array]) -> list[tuple[str, mx.array]]:
        """The opposite: named arrays, in their shapes."""
        if self.by_matrix:
            return list(zip(self.shapes, held, strict=True))
        pieces = mx.split(held[0], self.ends[1:-1]) if len(self.shapes) > 1 else [held[0]]
        return [
            (name, piece.reshape(shape))
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        ]

    def step(
        self, gradients: Sequence[mx.array], parameters: Sequence[mx.array], learning_rate: float
    ) -> list[tuple[str, mx.array]]:
        """The updated parameters, lazily."""
        self.optimizer.learning_rate = learning_rate * self.ratio
        trees = [dict(zip(self.slots, held, strict=True)) for held in (gradients, parameters)]
        updated = self.optimizer.apply_gradients(*trees)
        self._whole = [updated[slot] for slot in self.slots]
        pieces = self.split(self._whole)
        self._pieces = dict(pieces)
        return pieces

    def arrays(self) -> dict[str, mx.array]:
        """This group's state by parameter and slot."""
        states = [self.optimizer.state[slot] for slot in self.slots]
        if self.by_matrix:
            return {
                f"{name}.{key}": array
                for name, state in zip(self.shapes, states, strict=True)
                for key, array in state.items()
            }
        return {
            f"{name}.{key}": array
            for key, vector in states[0].items()
            for name, array in self.split([vector])
        }

    def restore(self, arrays: Mapping[str, mx.array]) -> None:
        """Put back `arrays`."""
        state = self.optimizer.state
        state["step"] = arrays["step"].astype(mx.uint64)
        for name, slot in zip(self.shapes, self.slots, strict=False):
            for key in state[slot]:
                if self.by_matrix:
                    state[slot][key] = arrays[f"{name}.{key}"]
                else:
                    (state[slot][key],) = self.join({n: arrays[f"{n}.{key}"] for n in self.shapes})


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
