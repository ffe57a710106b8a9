"""What the user named as sources -> files on this disk and what is known about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.importing import hub
from mlx_itune.dataset.importing.inheriting import described_sources
from mlx_itune.dataset.importing.inputs import Inputs, distinct, find_inputs, input_file
from mlx_itune.dataset.importing.licences import licence_beside
from mlx_itune.kit.errors import DataError


@dataclass(frozen=True)
class Gathered:
    """The inputs of an import, and facts for dataset.json by label: licence, hub, revision."""

    inputs: Inputs
    about: Mapping[str, Mapping[str, Any]]


def gather(sources: Sequence[str], *, offline: bool) -> Gathered:
    """Files and folders as they are; Hub data sets as files of the cache. A local path wins.

    Raises DataError for a path that is not there, and what hub.fetch raises.
    """
    local: list[Path] = []
    fetched: list[tuple[hub.HubName, hub.HubData]] = []
    for source in sources:
        path = Path(source)
        name = None if path.exists() else hub.parse_name(source)
        if name is None:
            local.append(path)
        else:
            fetched.append((name, hub.fetch(name, offline=offline)))
    inputs = find_inputs(local) if local else Inputs(())
    about: dict[str, dict[str, Any]] = {}
    for file in inputs.new_files():
        about[file.label] = {"licence": _licence(file.path, local)}
    files = list(inputs.files)
    for name, data in fetched:
        short = name.name.rpartition("/")[2]
        licence = licence_beside(data.folder)
        for path in data.files:
            label = f"{name.name}/{path.relative_to(data.folder).as_posix()}"
            file = input_file(path, label, path)
            files.append(dataclasses.replace(file, name=short))
            about[label] = {"licence": licence, "hub": name.name, "revision": data.revision}
    if not files:
        raise DataError("no file of rows", where=", ".join(sources))
    return Gathered(dataclasses.replace(inputs, files=tuple(distinct(files))), about)


def named(inputs: Inputs, name: str | None) -> Inputs:
    """The same files, all under one source name if there is one."""
    if name is None:
        return inputs
    files = tuple(dataclasses.replace(file, name=name) for file in inputs.files)
    return dataclasses.replace(inputs, files=files)


def known_licences(inputs: Inputs, about: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """The licence of each source by name, those that data folders bring along included."""
    known: dict[str, str | None] = {}
    for parent in inputs.parents:
        for source in described_sources(parent.folder):
            known[str(source.get("name"))] = source.get("licence")
    for file in inputs.new_files():
        known.setdefault(file.name, None)
        known[file.name] = known[file.name] or about.get(file.label, {}).get("licence")
    return known


def _licence(path: Path, sources: Sequence[Path]) -> str | None:
    """What the file's folder says, or else the folder that was named."""
    above = [source for source in sources if source.is_dir() and path.is_relative_to(source)]
    for place in (path, *above):
        if found := licence_beside(place):
            return found
    return None
