"""Native code that gives up: its error is one of ours, and its words stay off the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_itune.kit.errors import ItuneError
from mlx_itune.kit.wording import brief


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up under Python (pyo3's PanicException, which is no Exception)."""
    return not isinstance(error, Exception) and type(error).__name__ == "PanicException"


@contextmanager
def panics_as(error: type[ItuneError], what: str, where: str) -> Iterator[None]:
    """Raise `error` ("`what`: reason") for a panic of the block; of the block, stderr is silent.

    A panic writes its stack to descriptor 2 before Python hears of it.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except BaseException as raised:
        if not is_panic(raised):
            raise
        raise error(f"{what}: {brief(raised)}", where=where) from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
