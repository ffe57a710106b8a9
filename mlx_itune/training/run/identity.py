"""What makes a run that run: a resumed one refuses to go on with anything else, by field name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.sources import split_paths
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError, ModelError, UsageError
from mlx_itune.kit.files import sha256_file
from mlx_itune.training.settings import TrainSettings

# These may change between two sessions of a run: where things are is checked by content, and how
# often the run is saved does not change what it computes.
_FREE = frozenset("model data out runs offline save_every save_every_s keep keep_best".split())
_SHOWN = 4


def settings_facts(settings: TrainSettings) -> dict[str, Any]:
    """Every setting that the numbers depend on."""
    return {
        name: _plain(value)
        for name, value in dataclasses.asdict(settings).items()
        if name not in _FREE
    }


def data_facts(data: Path) -> dict[str, Any]:
    """Name and SHA-256 of the files that are trained on or validated with. Raises DataError."""
    return {
        part: {"file": path.name, "sha256": sha256_file(path)}
        for part, path in split_paths(data).items()
        if part.partition("/")[0] != "test"
    }


def rows_digest(*parts: Iterable[TokenizedExample]) -> str:
    """SHA-256 over ids and weights of all examples in order: what the run learns, to the bit."""
    digest = hashlib.sha256()
    for part in parts:
        for example in part:
            digest.update(len(example.input_ids).to_bytes(8, "little"))
            digest.update(example.input_ids.astype("<i4", copy=False).tobytes())
            digest.update(example.weights.astype("<f4", copy=False).tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def tokenizer_facts(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Hashes of tokenizer and template."""
    return {
        "tokenizer": tokenizer.fingerprint(),
        "template": tokenizer.name,
        "template_sha256": tokenizer.template_sha256,
    }


def machine_facts() -> dict[str, Any]:
    """What the last bits of a sum depend on."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"machine": platform.machine(), "system": platform.system(), "cpus": cpus or 1}


def require_same_settings(began: Mapping[str, Any], settings: TrainSettings, where: str) -> None:
    """Raise UsageError naming each setting that is not what the run began with."""
    now = settings_facts(settings)
    # A setting that there was not yet when the run began was at its default then.
    defaults = {f.name: _plain(f.default) for f in dataclasses.fields(settings) if f.name in now}
    before = {**defaults, **began}
    changed = [
        f"{name} is {now.get(name)!r}, the run began with {before[name]!r}"
        for name in before
        if now.get(name) != before[name]
    ]
    if changed:
        raise UsageError(
            _listed(changed), where=where, hint="put it back, or start a new run with train"
        )


def require_same_data(began: Mapping[str, Any], data: Path) -> None:
    """Raise DataError naming each data file that is not the one the run began with."""
    now = data_facts(data)
    changed = []
    for part in dict.fromkeys([*began, *now]):
        before, after = began.get(part), now.get(part)
        if before is None:
            changed.append(f"data.{part} ({after['file'] if after else part}) is new")
        elif after is None:
            changed.append(f"data.{part} ({before['file']}) is gone")
        elif before["sha256"] != after["sha256"]:
            changed.append(
                f"data.{part}.sha256 ({after['file']}) is {after['sha256'][:12]}, "
                f"the run began with {before['sha256'][:12]}"
            )
    if changed:
        raise DataError(
            _listed(changed), where=str(data), hint="put the rows back, or start a new run"
        )


def require_same_model(
    began: Mapping[str, Any], now: Mapping[str, Any], *, where: str, prefix: str = ""
) -> None:
    """Raise ModelError naming each fact about base, tokenizer or rows that has changed."""
    changed = [
        f"{prefix}{name} is {_short(now[name])}, the run began with {_short(began.get(name))}"
        for name in now
        if name in began and now[name] != began[name]
    ]
    if changed:
        raise ModelError(_listed(changed), where=where, hint="put it back, or start a new run")


def differences(
    began: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()
) -> list[str]:
    """What else has changed, `but` for these; such a run goes on, but its last bits may differ."""
    return [
        f"{name} {now.get(name)} (began with {began.get(name)})"
        for name in dict.fromkeys([*began, *now])
        if name not in but and now.get(name) != began.get(name)
    ]


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _listed(changed: list[str]) -> str:
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "; ".join(changed[:_SHOWN]) + more


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
