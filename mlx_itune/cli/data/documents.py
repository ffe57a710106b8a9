"""``data ingest``: documents into passages."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, listing

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_itune.dataset.ingest.run import Ingest

_FILES_SHOWN, _REJECTED_SHOWN = 20, 50


@options.command("data ingest")
@options.flags("documents out-directory max-characters")
def ingest(sources: tuple[Path, ...], out: Path, max_characters: int) -> Result:
    """Documents in; a folder of passages out, each with the place that it is from.

    Text, Markdown, HTML, PDF, Word, PowerPoint, EPUB, e-mail and CSV files, or folders of them. A
    file that cannot be read is one line, and the others go on. `data grow` drafts rows from
    passages.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.ingest.run import ingest

    with Progress() as progress:
        made = ingest(sources, out, max_characters=max_characters, observe=progress.bytes)
    return Result(made, _lines(made))


def _lines(made: Ingest) -> Iterator[str | Table]:
    rows = [
        [one_line(file.source), file.kind, f"{file.passages:,}", f"{file.characters:,}"]
        for file in made.files[:_FILES_SHOWN]
    ]
    yield table(["document", "kind", "passages", "characters"], rows)
    if more := len(made.files) - len(rows):
        yield f"... and {count(more, 'document')} more"
    for file in made.files:
        yield from (one_line(f"{file.source}: {note}") for note in file.notes)
    for each in made.rejected[:_REJECTED_SHOWN]:
        yield one_line(f"not read: {each.file}: {each.message}")
    if (more := len(made.rejected) - _REJECTED_SHOWN) > 0:
        yield f"... and {more:,} more not read (ingest.json has them all)"
    if made.skipped:
        kinds = [f"{number:,} {one_line(kind)}" for kind, number in made.skipped.items()]
        yield f"files of other kinds: {listing(kinds, 8)}"
    read = count(len(made.files), "document")
    yield f"{made.out}: {count(made.passages, 'passage')} of {read}"
    again = f"{shlex.quote(made.out)} --recipe question-answer --model MODEL --out drafts"
    yield f"next: mlx-itune data grow {again}"
