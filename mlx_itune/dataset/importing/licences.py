"""The licences of data: what a source says beside its files, what a data folder's record says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mlx_itune.dataset.importing.provenance import read_dataset

_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING")
_READ_BYTES = 20_000
# The first that occurs wins, so the narrower wording comes before the wider one.
_WORDINGS = (
    ("CC-BY-NC-SA-4.0", r"attribution-noncommercial-sharealike 4\.0"),
    ("CC-BY-NC-ND-4.0", r"attribution-noncommercial-noderivatives 4\.0"),
    ("CC-BY-NC-4.0", r"attribution-noncommercial 4\.0"),
    ("CC-BY-SA-4.0", r"attribution-sharealike 4\.0"),
    ("CC-BY-SA-3.0", r"attribution-sharealike 3\.0"),
    ("CC-BY-ND-4.0", r"attribution-noderivatives 4\.0"),
    ("CC-BY-4.0", r"attribution 4\.0"),
    ("CC0-1.0", r"cc0 1\.0"),
    ("Apache-2.0", r"apache license,? +version 2\.0"),
    ("MIT", r"permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("AGPL-3.0", r"gnu affero general public license version 3"),
    ("LGPL-3.0", r"gnu lesser general public license version 3"),
    ("GPL-3.0", r"gnu general public license version 3"),
    ("GPL-2.0", r"gnu general public license version 2"),
    ("MPL-2.0", r"mozilla public license,? version 2\.0"),
    ("ODC-By-1.0", r"odc attribution license"),
    ("ODbL-1.0", r"open database license"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the name"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
)


def data_licences(data: Path) -> dict[str, str | None]:
    """The licence of each source of a data folder, of one of its files, or of any file of rows.

    None where nobody knows. Raises DataError for a broken dataset.json.
    """
    if record := read_dataset(data):
        return {source.name: source.licence for source in record.sources}
    return {data.name if data.is_dir() else data.stem: licence_beside(data)}


def joined(licences: Iterable[str | None]) -> str | None:
    """Several licences as one; None if any is unknown."""
    listed = list(licences)
    return None if None in listed else " and ".join(dict.fromkeys(map(str, listed))) or None


def licence_beside(source: Path) -> str | None:
    """The licence named by the README's front matter or a licence file next to `source`.

    For a file its folder is looked at, for a folder itself. None where nothing is recognised.
    """
    folder = source if source.is_dir() else source.parent
    return _from_card(folder / "README.md") or next(
        (found for name in _NAMES if (found := _from_text(_read(folder / name)))), None
    )


def _from_card(path: Path) -> str | None:
    """`license:` of a data card: a string, or a list of which all are named."""
    text = _read(path)
    card = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if card is None:
        return None
    stated = re.search(r"(?m)^licen[sc]e:[ \t]*(.*(?:\r?\n[ \t]*-[ \t].*)*)", card[1])
    if stated is None:
        return None
    names = re.findall(r"[^\s,\[\]\"'#-][^\n\r,\[\]\"'#]*", stated[1])
    return " and ".join(name.strip() for name in names if name.strip()) or None


def _from_text(text: str) -> str | None:
    words = re.sub(r"\s+", " ", text).lower()
    return next((name for name, wording in _WORDINGS if re.search(wording, words)), None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
