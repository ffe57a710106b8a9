"""Several adapters on one base: its weights are in memory once, whichever adapter is on."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.adapters.grid_norm import is_norm
from mlx_itune.model.adapters.lowrank import adaptable
from mlx_itune.model.engine.compute import Packed, packed, release
from mlx_itune.model.loading.base import LoadedModel


class AdapterSet:
    """The base and its adapters by name; one of them is on at a time, None is the bare base.

    Made from a base without an adapter, which is then this object's to change. Raises ModelError
    for an adapter that was trained on another base or does not fit.
    """

    def __init__(self, loaded: LoadedModel, named: Mapping[str, Adapter]) -> None:
        model = loaded.model
        model.eval()
        self.loaded = loaded
        self.current: str | None = None
        self._bare = {path: m for path, m in model.named_modules() if adaptable(m) or is_norm(m)}
        self._layers: dict[str | None, dict[str, nn.Module]] = {None: {}}
        stored = [(m, kept) for m in self._bare.values() if (kept := packed(m)) is not None]
        for name, adapter in named.items():
            adapters.apply(loaded, adapter)
            self._layers[name] = dict(lora.adapted(model))
            self.current = name
            self.use(None)
            _give_back(stored)
        release(model)

    def use(self, name: str | None) -> None:
        """Put an adapter on and take the one before it off. Raises KeyError for an unknown name."""
        if name == self.current:
            return
        layers = {path: self._bare[path] for path in self._layers[self.current]}
        layers |= self._layers[name]
        self.loaded.model.update_modules(tree_unflatten(list(layers.items())))
        self.current = name


def _give_back(stored: list[tuple[nn.Module, Packed]]) -> None:
    """Attaching an adapter lets go of stored tensors; the next one may need them."""
    for module, kept in stored:
        module.packed = kept
