"""Which layers an adapter goes on: by name, glob or regular expression, and by depth."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.nn as nn
import regex

from mlx_itune.kit.errors import ModelError, closest
from mlx_itune.kit.patterns import compiled
from mlx_itune.model.adapters.lowrank import LINEAR, SWITCH, adaptable, matrix_shape

# Before a key that is a regular expression.
REGEX = "re:"
NARROWEST = 8
# What matching a pattern with one name may take.
_PATTERN_S = 0.5


@dataclass(frozen=True)
class Target:
    """An adaptable layer: its path, and its block's index and its name in there, if in a block."""

    path: str
    block: int | None
    name: str
    module: nn.Module


def choose(
    model: nn.Module,
    keys: Sequence[str] | None,
    num_layers: int,
    *,
    experts: bool = True,
    also: Callable[[nn.Module], bool] = lambda _: False,
) -> list[Target]:
    """The layers that `keys` name, in the model's order; None takes every linear one of the blocks,
    but for very narrow ones (coefficients, routers of a few experts).

    A key is a name in a block, or its end, a full path, a glob over either, or "re:" and a regular
    expression that matches one as a whole. num_layers: how many of the last blocks, -1 for all; of
    layers outside, keys alone decide. experts: whether None takes them too. also: what else can be
    adapted, and None takes. Raises ModelError.
    """
    blocks = len(model.layers)
    if not (num_layers == -1 or 0 < num_layers <= blocks):
        raise ModelError(f"the model has {blocks} layers, not {num_layers}")
    first = 0 if num_layers == -1 else blocks - num_layers
    every = _targets(model, also)
    within = [t for t in every if t.block is None or t.block >= first]
    if keys is None:
        kinds = (*LINEAR, *SWITCH) if experts else LINEAR
        fitting = [t for t in within if isinstance(t.module, kinds) or also(t.module)]
        chosen = [t for t in fitting if t.block is not None and not is_narrow(t.module)]
    else:
        matched = [_matching(key, within) for key in keys]
        for key, found in zip(keys, matched, strict=True):
            if not found:
                _refuse(model, key, every)
        paths = {t.path for found in matched for t in found}
        chosen = [t for t in within if t.path in paths]
    if not chosen:
        raise ModelError("the model has no linear layer to adapt")
    return chosen


def is_narrow(module: nn.Module) -> bool:
    """Whether a linear layer has so few rows or columns that low rank means nothing there."""
    return isinstance(module, LINEAR) and min(matrix_shape(module)) < NARROWEST


def matched(pattern: str, text: str, *, whole: bool = True) -> regex.Match[str] | None:
    """The match of a stranger's regular expression with ``text``, or with its start.

    Raises ModelError for one that is broken, or takes too long.
    """
    shown = pattern if len(pattern) <= 80 else f"{pattern[:77]}..."
    try:
        made = compiled(pattern)
        match = made.fullmatch if whole else made.match
        return match(text, timeout=_PATTERN_S)
    except TimeoutError:
        raise ModelError(f"{shown} takes too long to match {text}", hint="simplify it") from None
    except ValueError as error:
        raise ModelError(f"{shown} is no regular expression ({error})") from None


def key_names(key: str, name: str, path: str) -> bool:
    """Whether a key is the end of a name, or as a pattern matches it or the full path."""
    if key.startswith(REGEX):
        return any(matched(key[len(REGEX) :], text) for text in (name, path))
    if any(letter in key for letter in "*?["):
        return any(fnmatch.fnmatchcase(text, key) for text in (name, path))
    return name.endswith(f".{key}")


def placement(model: nn.Module, paths: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """(keys, num_layers) that mean these layers to mlx-lm, whose keys know no patterns.

    Names in a block where the last blocks all carry the same ones, else full paths.
    """
    blocks = [(f"{path}.", module) for path, module in _blocks(model)]
    inside = {
        p: (i, p[len(b) :]) for p in paths for i, (b, _) in enumerate(blocks) if p.startswith(b)
    }
    outside = [p for p in paths if p not in inside]
    if inside:
        first = min(index for index, _ in inside.values())
        names = {name for _, name in inside.values()}
        meant = {
            (i, name)
            for i, (_, block) in enumerate(blocks)
            if i >= first
            for name, _ in block.named_modules()
            if name in names
        }
        if meant == set(inside.values()):
            return (*sorted(names), *outside), len(blocks) - first
    return tuple(paths), len(blocks)


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    prefixes = {id(module): path for path, module in model.named_modules()}
    return [(prefixes[id(block)], block) for block in model.layers]


def _targets(model: nn.Module, also: Callable[[nn.Module], bool]) -> list[Target]:
    blocks = _blocks(model)
    found = []
    for path, module in model.named_modules():
        if adaptable(module) or also(module):
            index = next((i for i, (b, _) in enumerate(blocks) if path.startswith(f"{b}.")), None)
            name = path if index is None else path[len(blocks[index][0]) + 1 :]
            found.append(Target(path, index, name, module))
    return sorted(found, key=lambda t: (t.block is None, t.block or 0, t.path))


def _matching(key: str, targets: Sequence[Target]) -> list[Target]:
    """What a key names; a name's end counts only where nothing is called just so."""
    exact = [t for t in targets if key in (t.name, t.path)]
    return exact or [t for t in targets if key_names(key, t.name, t.path)]


def _refuse(model: nn.Module, key: str, every: Sequence[Target]) -> None:
    roots = (model, *model.layers)
    named = {path: m for root in reversed(roots) for path, m in root.named_modules() if path}
    if key in named:
        if not adaptable(named[key]):
            raise ModelError(f"an adapter cannot adapt a {type(named[key]).__name__}", where=key)
        raise ModelError("lies outside the last layers that num_layers leaves", where=key)
    near = closest(key, {t.name for t in every})
    hint = f"did you mean {near}?" if near else "see the names in the model's weights"
    raise ModelError(f"no layer is called {key}", hint=hint)
