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
from mlx_itune.kit.errors import DataError, ItuneError, UsageError
from mlx_itune.kit.files import sha256_file
from mlx_itune.kit.json_files import plain
from mlx_itune.training.run.run import DataFile, How, Machine
from mlx_itune.training.settings import TrainSettings, table

# These may change between two sessions of a run: where things are is checked by content, and how
# often the run is saved does not change what it computes.
_FREE = frozenset("model data out runs offline save_every save_every_s keep".split())
_SHOWN = 4


def settings_facts(settings: TrainSettings) -> dict[str, Any]:
    """Every setting that the numbers depend on."""
    return {name: value for name, value in plain(settings).items() if name not in _FREE}


def data_facts(data: Path) -> dict[str, DataFile]:
    """The files that are trained on or validated with, by part. Raises DataError."""
    return {
        part: DataFile(path.name, sha256_file(path))
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


def machine_facts(device: str) -> Machine:
    """This machine."""
    return Machine(platform.machine(), platform.system(), cpus(), device)


def cpus() -> int:
    """Cores that this process may use."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return own or 1


def require_same_settings(began: Mapping[str, Any], settings: TrainSettings, where: str) -> None:
    """Raise UsageError naming each setting that is not what the run began with."""
    now = settings_facts(settings)
    # A setting that there was not yet when the run began was at its default then.
    defaults = {name: plain(table()[name].default) for name in now}
    refuse(changes({**defaults, **began}, now), UsageError, where)


def require_same_data(began: Mapping[str, DataFile], data: Path) -> None:
    """Raise DataError naming each data file that is not the one the run began with."""
    now = data_facts(data)
    found = []
    for part in dict.fromkeys([*began, *now]):
        if part not in began or part not in now:
            file = {**began, **now}[part].file
            found.append(f"data.{part} ({file}) is {'gone' if part in began else 'new'}")
        else:
            name = f"data.{part}.sha256 ({now[part].file})"
            found += changes({name: began[part].sha256}, {name: now[part].sha256})
    refuse(found, DataError, str(data))


def changes(
    began: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()
) -> list[str]:
    """Each value that has changed, `but` for these, as "seed is 1, the run began with 0"."""
    return [
        f"{name} is {_short(now.get(name))}, the run began with {_short(began.get(name))}"
        for name in dict.fromkeys([*began, *now])
        if name not in but and now.get(name) != began.get(name)
    ]


def model_changes(began: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of base, tokenizer and rows has changed; a fact that one side lacks is of another
    version of mlx-lm, and passed over."""
    both = [name for name in began if name in now]
    return changes({n: began[n] for n in both}, {n: now[n] for n in both})


def refuse(changed: list[str], error: type[ItuneError], where: str, hint: str = "") -> None:
    """Raise `error` where anything has changed."""
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        way = "put it back, or start a new run with train"
        raise error("; ".join(changed[:_SHOWN]) + more, where=where, hint=way + hint)


def how_facts(how: How) -> dict[str, Any]:
    """How steps are computed, flat."""
    flat = dataclasses.asdict(how)
    return {**flat.pop("ways"), **flat}


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else repr(value)
