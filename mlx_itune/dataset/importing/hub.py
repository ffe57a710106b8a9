"""A data set of the Hugging Face Hub: its data files at one revision, and no code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlx_itune.kit.errors import StorageError, UsageError

_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?(:(?P<split>[\w.-]+))?"
)
# The first kind that a data set has is taken: the others, as a rule, say the same again.
_KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
_NOT_DATA = re.compile(
    r"(^|/)(\.|dataset_infos?\.json|dataset_dict\.json|state\.json|config\.json|package.*\.json)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """ "org/name", optionally with "@revision" and ":split" behind it."""

    name: str
    revision: str | None
    split: str | None


@dataclass(frozen=True)
class HubData:
    """Files on disk, and the commit that they are of."""

    folder: Path
    files: tuple[Path, ...]
    revision: str


def parse_name(text: str) -> HubName | None:
    """The Hub name in `text`, or None where it can only be a path."""
    if match := _ID.fullmatch(text):
        return HubName(match["name"], match["revision"], match["split"])
    return None


def fetch(hub: HubName, *, offline: bool) -> HubData:
    """The data files of a Hub data set, from the cache alone when `offline`.

    Raises UsageError for a name that the cache or the Hub does not have, StorageError for a
    download that failed.
    """
    return _from_cache(hub) if offline else _download(hub)


def data_files(names: Sequence[str], split: str | None) -> list[str]:
    """Those of a repository's files to read: one kind, and of one split if asked for."""
    named = [name for name in sorted(names) if not _NOT_DATA.search(name)]
    if split:
        named = [name for name in named if _is_of(name, split)]
    for kind in _KINDS:
        if chosen := [name for name in named if name.lower().removesuffix(".gz").endswith(kind)]:
            return chosen
    return []


def _is_of(name: str, split: str) -> bool:
    path = PurePosixPath(name)
    is_split = re.compile(rf"{re.escape(split)}([-_.]|$)")
    return split in path.parts[:-1] or bool(is_split.match(path.stem))


def _from_cache(hub: HubName) -> HubData:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                hub.name, repo_type="dataset", revision=hub.revision, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise UsageError(
            "is no local path, and --offline finds no copy in the Hub's cache",
            where=hub.name,
            hint="download it once without --offline",
        ) from None
    there = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return _chosen(hub, folder, there, folder.name)


def _download(hub: HubName) -> HubData:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        info = HfApi().dataset_info(hub.name, revision=hub.revision)
        commit = str(info.sha)
        wanted = data_files([file.rfilename for file in info.siblings or ()], hub.split)
        folder = Path(
            snapshot_download(
                hub.name,
                repo_type="dataset",
                revision=commit,
                allow_patterns=[*map(_literally, wanted), "README.md", "LICENSE*"],
            )
        )
    except RepositoryNotFoundError:
        raise UsageError(
            "is neither a local path nor a data set of the Hub that you may read", where=hub.name
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(f"could not be downloaded: {reason}", where=hub.name) from None
    return _chosen(hub, folder, wanted, commit)


def _chosen(hub: HubName, folder: Path, names: Sequence[str], revision: str) -> HubData:
    files = tuple(folder / name for name in data_files(names, hub.split))
    if not files:
        what = f"no data file of a split {hub.split!r}" if hub.split else "no data file"
        raise UsageError(
            f"has {what}", where=hub.name, hint=f"it may be any of {', '.join(_KINDS)}"
        )
    return HubData(folder, files, revision if _COMMIT.fullmatch(revision) else "unknown")


def _literally(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)
