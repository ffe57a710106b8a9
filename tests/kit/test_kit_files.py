"""Files and directories: wholly written or not at all, whatever call fails."""

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


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "open"])
@pytest.mark.parametrize("before", range(4))
def test_a_file_is_all_or_nothing_under_a_full_disk(tmp_path, monkeypatch, call, before):
    path = tmp_path / "a.bin"
    write_durably(path, b"old")
    fault = FailingCall(monkeypatch, call, before)
    try:
        write_durably(path, iter([b"ne", b"w"]))
    except StorageError as error:
        assert "No space left" in str(error) and str(tmp_path) in str(error)
    else:
        assert not fault.fired
        assert path.read_bytes() == b"new"
    assert path.read_bytes() in (b"old", b"new")
    assert names(tmp_path) == ["a.bin"]


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


def fill_file(stage: Path) -> None:
    write_durably(stage, b"new")
    write_durably(stage.with_suffix(".f16"), b"on the way")


def fill_folder(stage: Path) -> None:
    (stage / "sub").mkdir()
    (stage / "sub" / "f").write_text("new")


KINDS = [(staged_file, fill_file), (staged_directory, fill_folder)]


@pytest.mark.parametrize(("staged", "fill"), KINDS)
def test_an_output_appears_at_the_end_and_links_keep_pointing(tmp_path, staged, fill):
    link, out = tmp_path / "link", tmp_path / "deep" / "out"
    if staged is staged_directory:
        # An empty directory is welcome.
        out.mkdir(parents=True)
    link.symlink_to(out)
    with staged(link) as stage:
        fill(stage)
        assert not out.exists() or not names(out)
    assert (out if out.is_file() else out / "sub" / "f").read_text() == "new"
    assert names(tmp_path) == ["deep", "link"] and names(out.parent) == ["out"]
    assert link.is_symlink()


@pytest.mark.parametrize(("staged", "fill"), KINDS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_leaves_the_place_as_it_was(tmp_path, staged, fill, error):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").write_text("old")
    with pytest.raises(error), staged(tmp_path / "new" / "out") as stage:
        fill(stage)
        raise error
    if staged is staged_directory:
        with pytest.raises(error), staged(tmp_path / "full", overwrite=True) as stage:
            fill(stage)
            raise error
    assert names(tmp_path) == ["full"]
    assert (tmp_path / "full" / "old").read_text() == "old"


def make_full(out: Path) -> None:
    out.mkdir()
    (out / "theirs").write_text("x")


@pytest.mark.parametrize(
    ("staged", "make", "told"),
    [
        (staged_directory, Path.touch, "is a file"),
        (staged_directory, make_full, "not empty"),
        (staged_file, Path.touch, "already exists"),
        (staged_file, Path.mkdir, "is a directory"),
        (staged_file, os.mkfifo, "already exists"),
    ],
)
def test_what_is_there_is_not_replaced(tmp_path, staged, make, told):
    make(tmp_path / "before")
    with pytest.raises(StorageError, match=told), staged(tmp_path / "before"):
        pytest.fail("the block must not run")
    with pytest.raises(StorageError, match="already exists"):
        write_new(Path(os.devnull), b"new")
    # Nor is what another writer made meanwhile.
    with pytest.raises(StorageError), staged(tmp_path / "meanwhile") as stage:
        (fill_file if staged is staged_file else fill_folder)(stage)
        make(tmp_path / "meanwhile")
    assert names(tmp_path) == ["before", "meanwhile"]
    assert not (tmp_path / "before").is_dir() or names(tmp_path / "before") in ([], ["theirs"])


def test_what_the_system_says_names_the_file(tmp_path):
    def data():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_durably(tmp_path / "a.bin", data())
    with pytest.raises(StorageError, match=r"nowhere/a\.bin: No such file"):
        write_durably(tmp_path / "nowhere" / "a.bin", b"")
    with pytest.raises(StorageError, match=r"b\.bin: No such file"), storage_errors("a.bin"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "b.bin")
    with pytest.raises(StorageError, match="No space left"), staged_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_sha256_and_free_space(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    free = shutil.disk_usage(tmp_path).free
    require_free_bytes(tmp_path / "not" / "yet", 1, "nothing")
    with pytest.raises(StorageError, match=r"the fused model needs .* GB, the disk"):
        require_free_bytes(tmp_path / "not" / "yet", free * 2, "the fused model")
