"""Files of rows as the data commands take them: --format, --map, splits and progress."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlx_itune.cli import options
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.kit.errors import UsageError, one_line
from mlx_itune.kit.files import refuse_taken, storage_errors
from mlx_itune.kit.wording import count
from mlx_itune.training.settings import table

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation, Fault
    from mlx_itune.dataset.how import Account
    from mlx_itune.dataset.rendering.render import Learn
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

F = TypeVar("F", bound=Callable[..., Any])
_SOURCES_SHOWN = 10
_FIELDS = ("instruction", "output")
_SPLITS = ("train", "valid", "test")
# Files whose format is not to be found out; what both may be is what an import takes.
forced_format = options.settings(ImportPlan, "forced", "format map roles encoding no_input")


@dataclass(frozen=True)
class AboutTokens:
    """--model, and what has no effect without it."""

    model: str | None
    template: str | None
    max_length: int | None
    learn: Learn | None
    template_option: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        told = self.template or self.max_length or self.learn or self.template_option
        if told and not self.model:
            what = "--template, --template-option, --max-length and --learn are about tokens"
            raise UsageError(what, hint="give --model too")

    @property
    def tokenizer(self) -> ChatTokenizer | None:
        """The model's, if one was given."""
        if not self.model:
            return None
        return tokenizer_of(self.model, self.template, self.template_option)


about_tokens = options.as_record(
    "tokens",
    f"{__name__}:AboutTokens",
    options.flags("model-of-tokens template"),
    options.flag(
        table()["max_length"], "With --model: tell of longer rows, in tokens (data check: 2048)."
    ),
    options.flag(
        table()["learn"], "With --model: which assistant turns are learned (default all)."
    ),
    options.flags("template-option"),
)


class RowFiles:
    """The files of some paths, in order (train, valid, test, then by name), read lazily."""

    def __init__(self, paths: Sequence[Path], forced: ImportPlan) -> None:
        from mlx_itune.dataset.sources import expand, no_such

        with storage_errors(paths[0]):
            for path in paths:
                if not path.exists():
                    raise no_such(path)
            ranks = {split: rank for rank, split in enumerate(_SPLITS)}
            self.paths = sorted(expand(paths), key=lambda path: ranks.get(path.stem, len(ranks)))
            self.bytes = sum(path.stat().st_size for path in self.paths)
        self.name = ", ".join(dict.fromkeys(path.resolve().name for path in paths))
        self.how = forced.reading

    def read(
        self, path: Path, on_bytes: Callable[[int], None] | None = None
    ) -> Iterator[Conversation | Fault]:
        """The rows of one file; `on_bytes` is told of each further stretch of bytes."""
        from mlx_itune.dataset.sources import read_rows

        return read_rows(path, how=self.how, on_bytes=on_bytes)

    def splits(
        self, on_bytes: Callable[[int], None]
    ) -> Iterator[tuple[str, Iterator[Conversation | Fault]]]:
        """(split or file name, rows) of each file."""
        for path in self.paths:
            yield path.stem if path.stem in _SPLITS else path.name, self.read(path, on_bytes)


def tokenizer_of(
    model: str, template: str | None, template_option: Sequence[str] = ()
) -> ChatTokenizer:
    """The tokenizer of a model, without its weights. Raises ModelError, UsageError."""
    from mlx_itune.dataset.tokens.dialect import template_options
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.model.loading.base import resolve, vet

    path = resolve(model)
    vet(path)
    told = template_options(template_option)
    return load_tokenizer(path, template=template or "auto", options=told)


def _new_page(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """`path` if it is new and ends in .html, so that no data is taken for a page."""
    if path is not None:
        if path.suffix.lower() not in (".html", ".htm"):
            raise UsageError("is no name for a page", where=str(path), hint="end it in .html")
        refuse_taken(path)
    return path


page = click.option(
    "--html", type=options.ANY_PATH, metavar="FILE", callback=_new_page, help="Write a page."
)


def suggestion(told: Account, *words: object) -> Iterator[str]:
    """The command again, with what the columns of refused rows seem to be; nothing where that does
    not show."""
    from mlx_itune.dataset.formats.fields import guess

    if found := guess(told.refused):
        maps = [f"--map {shlex.quote(f'{f}={c}')}" for f, c in zip(_FIELDS, found, strict=True)]
        again = " ".join(["mlx-itune data", *(shlex.quote(str(word)) for word in words), *maps])
        yield one_line(f"by its looks, and for you to say: {again}")


def repeats(sources: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """How many rows of which later file are repeated from which earlier one."""
    return [
        {"later": later, "earlier": earlier, "rows": rows}
        for (later, earlier), rows in sources.most_common()
    ]


def repeats_told(sources: Counter[tuple[str, str]]) -> Iterator[str]:
    """The same for people; nothing where all repeats are within a file."""
    found = repeats(sources)[:_SOURCES_SHOWN]
    if any(each["later"] != each["earlier"] for each in found):
        for each in found:
            rows = count(each["rows"], "row")
            yield one_line(f"repeated: {rows} of {each['later']} in {each['earlier']}")
