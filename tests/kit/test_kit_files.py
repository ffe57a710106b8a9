"""Files: wholly written or not at all, whatever call fails."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import (
    require_free_bytes,
    sha256_file,
    staged_directory,
    staged_file,
    storage_errors,
    write_durably,
    write_new,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class FailingCall:
    """Lets the first `before` calls of os.<name> through, then fails with ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, before: int) -> None:
        self.real, self.left, self.fired = getattr(os, name), before, False
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args, **options):
        if self.left == 0:
            self.left, self.fired = -1, True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        return self.real(*args, **options)


def test_write_durably_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_durably(path, b"old")
    write_durably(path, iter([b"ne", b"w"]))
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "open"])
@pytest.mark.parametrize("before", range(4))
def test_write_durably_is_all_or_nothing_under_a_full_disk(tmp_path, monkeypatch, call, before):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    fault = FailingCall(monkeypatch, call, before)
    try:
        write_durably(path, b"new")
    except StorageError as error:
        assert "No space left" in str(error) and str(tmp_path) in str(error)
    else:
        assert not fault.fired
        assert path.read_bytes() == b"new"
    assert path.read_bytes() in (b"old", b"new")
    assert names(tmp_path) == ["a.bin"]


def test_write_durably_removes_its_temporary_file_when_the_data_fails(tmp_path):
    def data():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_durably(tmp_path / "a.bin", data())
    assert names(tmp_path) == []


def test_write_durably_names_a_missing_folder(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/a\.bin: No such file"):
        write_durably(tmp_path / "nowhere" / "a.bin", b"")


def test_a_staged_directory_appears_only_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with staged_directory(out) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "f").write_text("x")
        assert not out.exists()
        assert stage.parent == out.parent
    assert (out / "sub" / "f").read_text() == "x"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_any_exception_leaves_the_place_as_it_was(tmp_path, error, overwrite):
    out = tmp_path / "out"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("old")
    with pytest.raises(error), staged_directory(out, overwrite=overwrite) as stage:
        (stage / "f").write_text("x")
        raise error
    assert names(tmp_path) == (["out"] if overwrite else [])
    assert not overwrite or (out / "old").read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
@pytest.mark.parametrize("before", range(7))
def test_a_failing_call_never_leaves_half_a_directory(tmp_path, monkeypatch, call, before):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    fault = FailingCall(monkeypatch, call, before)
    try:
        with staged_directory(out, overwrite=True) as stage:
            Path(stage / "new").write_text("new")
    except StorageError:
        assert fault.fired
    else:
        assert names(out) == ["new"]
    assert names(out) in (["old"], ["new"])
    # Only the removal of what was replaced may fail without a word: it cannot be undone any more.
    left = [name for name in names(tmp_path) if name != "out"]
    assert not left or (call == "open" and fault.fired and left[0].endswith(".partial"))


def test_a_full_disk_inside_the_block_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No space left"), staged_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_full_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "f").write_text("mine")
    with pytest.raises(StorageError, match="not empty"), staged_directory(tmp_path):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["f"]


def test_an_empty_directory_is_welcome_and_a_file_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    with staged_directory(tmp_path / "empty") as stage:
        (stage / "f").write_text("x")
    assert names(tmp_path / "empty") == ["f"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is a file"), staged_directory(tmp_path / "file"):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_filled_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StorageError, match="not empty"), staged_directory(out):
        out.mkdir()
        (out / "theirs").write_text("x")
    assert names(tmp_path) == ["out"] and names(out) == ["theirs"]


def test_a_link_keeps_pointing_at_the_replaced_directory(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "old").write_text("x")
    link.symlink_to(real)
    with staged_directory(link, overwrite=True) as stage:
        (stage / "new").write_text("x")
    assert link.is_symlink() and names(real) == ["new"]


def test_sha256_and_free_space(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    free = shutil.disk_usage(tmp_path).free
    require_free_bytes(tmp_path / "not" / "yet", 1, "nothing")
    with pytest.raises(StorageError, match=r"the fused model needs .* GB, the disk"):
        require_free_bytes(tmp_path / "not" / "yet", free * 2, "the fused model")


def test_storage_errors_name_the_file_the_system_named():
    with pytest.raises(StorageError, match=r"b\.bin: No such file"), storage_errors("a.bin"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "b.bin")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo])
def test_a_new_file_replaces_nothing(tmp_path: Path, make) -> None:
    make(tmp_path / "out")
    with pytest.raises(StorageError, match=r"already exists|is a directory"):
        write_new(tmp_path / "out", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    with pytest.raises(StorageError, match="already exists"):
        write_new(Path(os.devnull), b"new")


def test_of_two_writers_one_wins_and_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="already exists"), staged_file(tmp_path / "out") as late:
        write_new(tmp_path / "out", b"first")
        write_durably(late, b"second")
    assert (tmp_path / "out").read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
