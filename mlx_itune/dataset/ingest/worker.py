"""Documents read by another process: one that hangs, crashes or eats memory ends alone.

It is asked by a line of JSON for each document, and answers with one for each block, and one that
ends it: {"notes": [...]} or {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mlx_itune.dataset.ingest.passages import Block
from mlx_itune.kit.errors import DataError, ItuneError
from mlx_itune.kit.files import open_regular
from mlx_itune.kit.wording import duration

KINDS = ("pdf", "docx", "pptx", "epub", "html", "eml")
_MOST_BYTES, _MEMORY_BYTES = 512 << 20, 2 << 30
# Of what is parsed whole: its tree takes ten times as much.
_TREE_BYTES = {"html": 64 << 20, "eml": 64 << 20}
_SWOLLEN = 97
_SERVE = f"from {__name__} import serve; serve()"
_LEAST_S, _BYTES_PER_S = 60.0, 1 << 20


def read(path: Path, kind: str, note: Callable[[str], None]) -> Iterator[Block]:
    """The blocks of a document, in this process. Raises DataError, StorageError."""
    from mlx_itune.dataset.ingest import office
    from mlx_itune.dataset.ingest.html import read_html
    from mlx_itune.dataset.ingest.mail import read_mail
    from mlx_itune.dataset.ingest.pdf import read_pdf

    if kind == "pdf":
        return read_pdf(path, note)
    if kind in ("html", "eml"):
        with open_regular(path, DataError) as file:
            data = file.read()
        return read_html(data) if kind == "html" else read_mail(data, note)
    readers = {"docx": office.read_docx, "pptx": office.read_pptx, "epub": office.read_epub}
    return readers[kind](path)


class Worker:
    """The other process, started when it is first needed and again after it was lost."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def blocks(self, path: Path, kind: str, note: Callable[[str], None]) -> Iterator[Block]:
        """The blocks of a document. Raises DataError where it cannot be read, takes too long, or
        its reader crashes."""
        size = path.stat().st_size
        most = _TREE_BYTES.get(kind, _MOST_BYTES)
        if size > most:
            raise DataError(f"is larger than {most >> 20} MB", hint="divide it")
        process = self._started()
        limit_s = _LEAST_S + size / _BYTES_PER_S
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(limit_s, stop)
        timer.daemon = True
        timer.start()
        is_done = False
        try:
            yield from self._answers(process, {"path": str(path.absolute()), "kind": kind}, note)
            is_done = True
        except EOFError:
            what = "its reader crashed"
            if is_late.is_set():
                what = f"took longer than {duration(limit_s)}"
            elif process.wait() == _SWOLLEN:
                what = f"took more than {_MEMORY_BYTES >> 30} GB of memory"
            raise DataError(what) from None
        except DataError:
            is_done = True
            raise
        finally:
            timer.cancel()
            if not is_done:
                self._end()

    def _answers(
        self, process: subprocess.Popen[str], asked: dict[str, str], note: Callable[[str], None]
    ) -> Iterator[Block]:
        pipe_in, pipe_out = process.stdin, process.stdout
        assert pipe_in is not None and pipe_out is not None
        try:
            pipe_in.write(json.dumps(asked) + "\n")
            pipe_in.flush()
        except OSError:
            raise EOFError from None
        while line := pipe_out.readline():
            answer = json.loads(line)
            if isinstance(answer, list):
                yield Block(*answer)
                continue
            for each in answer.get("notes", ()):
                note(each)
            if "error" in answer:
                raise DataError(answer["error"], hint=answer.get("hint"))
            return
        raise EOFError

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            # The paths of this process: a module in the user's folder is not to be found first.
            code = f"import sys; sys.path[:] = {[p for p in sys.path if p]!r}; {_SERVE}"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            )  # fmt: skip
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve() -> None:
    """Answers on stdout to what is asked on stdin, until that ends."""
    threading.Thread(target=_watch, daemon=True).start()
    out = sys.stdout
    # What a library prints is no answer.
    sys.stdout = sys.stderr
    for line in sys.stdin:
        _answer(json.loads(line), out)


def _watch() -> None:
    """End this process where it takes too much memory: a Mac keeps to no limit that it is set."""
    while _memory_bytes() < _MEMORY_BYTES:
        time.sleep(0.05)
    os._exit(_SWOLLEN)


def _memory_bytes() -> int:
    with contextlib.suppress(OSError):
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()
    # On a Mac in bytes, and the most so far.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(asked: dict[str, str], out: IO[str]) -> None:
    notes: list[str] = []
    try:
        for block in read(Path(asked["path"]), asked["kind"], notes.append):
            out.write(json.dumps(block) + "\n")
        answer: dict[str, object] = {"notes": notes}
    except ItuneError as error:
        answer = {"error": error.message, "hint": error.hint}
    except (Exception, RecursionError) as error:
        # Parsers fail in many ways on what was made to break them.
        answer = {"error": f"is damaged: {type(error).__name__}: {error}"[:300]}
    out.write(json.dumps(answer) + "\n")
    out.flush()
