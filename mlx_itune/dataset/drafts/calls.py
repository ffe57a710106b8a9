"""What a teacher was asked and said: a log in which nothing is asked twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.dataset.drafts.records import CALLS
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import open_regular, storage_errors
from mlx_itune.kit.json_files import canonical, to_record


@dataclass(frozen=True)
class Call:
    """messages: (role, text); number: of the draft that it is for, which with the seed makes its
    dice; schema: what the answer is held to; of: who is asked."""

    messages: tuple[tuple[str, str], ...]
    of: str
    number: int = 0
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    schema: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """A hash of what is asked, of whom, with which dice."""
        return hashlib.sha256(canonical(self)).hexdigest()[:24]

    @property
    def prompt(self) -> str:
        """What is asked, as text."""
        return "\n\n".join(f"{role}: {text}" for role, text in self.messages)


@dataclass(frozen=True)
class Said:
    """An answer. finish: "stop", or "length" where it was cut, or why there is none."""

    key: str
    text: str
    finish: str = "stop"


class CallLog:
    """`calls.jsonl`, open for more; each answer is in the file when `add` returns, and on the disk
    when `close` does. Raises DataError, StorageError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CALLS
        self._said: dict[str, Said] = {}
        self.asked = 0
        whole = self._read() if self._path.exists() else 0
        with storage_errors(self._path):
            self._file = self._path.open("ab")
            # What a kill cut is no line.
            self._file.truncate(whole)

    def _read(self) -> int:
        with open_regular(self._path, DataError) as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].split(b"\n"), 1):
            if line:
                said = to_record(line, Said, where=f"{self._path}:{number}", error=DataError)
                self._said[said.key] = said
        return whole

    def __len__(self) -> int:
        return len(self._said)

    def get(self, call: Call) -> Said | None:
        """What was said to it before."""
        return self._said.get(call.key)

    def add(self, call: Call, text: str, finish: str) -> None:
        """Log an answer."""
        said = Said(call.key, text, finish)
        asked = {"messages": call.messages, "of": call.of, "number": call.number}
        line = {**vars(said), **asked, "seed": call.seed, "temperature": call.temperature}
        with storage_errors(self._path):
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        self._said[said.key] = said
        self.asked += 1

    def close(self) -> None:
        """Have all on the disk."""
        with storage_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
