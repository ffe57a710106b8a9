"""A data set of the Hugging Face Hub: its data files at one revision, and no code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlx_itune.kit import network
from mlx_itune.kit.errors import DataError, ItuneError, UsageError
from mlx_itune.kit.wording import brief

_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?(:(?P<split>[\w.-]+))?"
)
# The first kind that a data set has is taken: the others, as a rule, say the same again.
_KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
# A name that ends like a file is a path that was mistyped, not a data set to ask the Hub for.
_FILE = re.compile(
    r"\.(parquet|jsonl?|ndjson|[ct]sv|xlsx?|ods|txt|md|html?|pdf|docx|gz|zip|toml|ya?ml)$", re.I
)
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
    match = _ID.fullmatch(text)
    if match is None or _FILE.search(match["name"]):
        return None
    return HubName(match["name"], match["revision"], match["split"])


def fetch(hub: HubName) -> HubData:
    """The data files of a Hub data set, from the cache alone when offline.

    Raises UsageError for a name that the cache or the Hub does not have, DataError for a download
    that failed.
    """
    try:
        folder, names, revision = _from_cache(hub) if network.offline() else _download(hub)
    except Exception as error:  # the client raises its own kinds, its HTTP library's and the OS's
        raise _refusal(hub, error) from None
    files = tuple(folder / name for name in data_files(names, hub.split))
    if not files:
        what = f"no data file of a split {hub.split!r}" if hub.split else "no data file"
        raise UsageError(
            f"has {what}", where=hub.name, hint=f"it may be any of {', '.join(_KINDS)}"
        )
    return HubData(folder, files, revision if _COMMIT.fullmatch(revision) else "unknown")


def data_files(names: Sequence[str], split: str | None) -> list[str]:
    """Those of a repository's files to read: one kind, and of one split if asked for."""
    named = [name for name in sorted(names) if not _NOT_DATA.search(name)]
    if split:
        begins = re.compile(rf"{re.escape(split)}([-_.]|$)")
        paths = {name: PurePosixPath(name) for name in named}
        named = [n for n, p in paths.items() if split in p.parts[:-1] or begins.match(p.stem)]
    for kind in _KINDS:
        if chosen := [name for name in named if name.lower().removesuffix(".gz").endswith(kind)]:
            return chosen
    return []


def _from_cache(hub: HubName) -> tuple[Path, list[str], str]:
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            hub.name, repo_type="dataset", revision=hub.revision, local_files_only=True
        )
    )
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return folder, names, folder.name


def _download(hub: HubName) -> tuple[Path, list[str], str]:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().dataset_info(hub.name, revision=hub.revision)
    wanted = data_files([file.rfilename for file in info.siblings or ()], hub.split)
    literal = [re.sub(r"([\[\]*?])", r"[\1]", name) for name in wanted]
    folder = snapshot_download(
        hub.name,
        repo_type="dataset",
        revision=info.sha,
        allow_patterns=[*literal, "README.md", "LICENSE*"],
    )
    return Path(folder), wanted, str(info.sha)


def _refusal(hub: HubName, error: Exception) -> ItuneError:
    """What went wrong, in one line."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if network.offline():
        return UsageError(
            "is no local path, and --offline finds no copy in the Hub's cache",
            where=hub.name,
            hint="download it once without --offline",
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"has no revision {hub.revision!r}", where=hub.name)
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(
            "is neither a local path nor a data set of the Hub that you may read", where=hub.name
        )
    reason = f"is no local path, and could not be downloaded: {brief(error)}"
    return DataError(reason, where=hub.name)
