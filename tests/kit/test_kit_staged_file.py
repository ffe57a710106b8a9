"""A staged file is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import staged_file, write_durably


def test_it_appears_when_the_block_is_done(tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.gguf"
    with staged_file(out) as stage:
        assert stage.name == "model.gguf"
        write_durably(stage, b"whole")
        write_durably(stage.with_suffix(".f16"), b"on the way")
        assert not out.exists()
    assert out.read_bytes() == b"whole"
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_when_it_fails(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"old")
    with pytest.raises(error), staged_file(out, overwrite=True) as stage:
        write_durably(stage, b"new")
        raise error
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_file_that_is_there_and_a_directory_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"old")
    with pytest.raises(StorageError, match="already exists"), staged_file(out):
        pytest.fail("not reached")
    with pytest.raises(StorageError, match="is a directory"), staged_file(tmp_path):
        pytest.fail("not reached")


def test_a_link_keeps_pointing_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "disk" / "model.gguf")
    with staged_file(link) as stage:
        write_durably(stage, b"whole")
    assert link.is_symlink()
    assert (tmp_path / "disk" / "model.gguf").read_bytes() == b"whole"
