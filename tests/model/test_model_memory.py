"""What a machine can give, from files of /proc and control groups; limits that are put back."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.model.engine import memory

import mlx.core as mx  # isort: skip

GB = 10**9


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available and no control group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "a CPU"})
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_a_linux_machine_has_what_is_available_or_what_its_control_group_leaves(
    linux: Path,
) -> None:
    found = memory.machine()
    assert (found.device, found.available_bytes) == ("cpu", 8 << 30)
    assert found.source == "available memory"
    assert 0.8 * found.available_bytes < found.limit_bytes < found.available_bytes
    assert memory.machine(1.5).limit_bytes == 1_500_000_000
    # Nonsense is no limit, and a full group leaves nothing.
    write(linux / "proc/self", cgroup="0::/a/b")
    write(linux / "cgroup/a", memory__max="what", memory__current=1)
    assert memory.machine().available_bytes == 8 << 30
    write(linux / "cgroup/a", memory__max=GB, memory__current=2 * GB)
    assert memory.machine().limit_bytes == 0
    # Version 2: the tighter of the nested groups counts; cached file pages count as free.
    write(linux / "cgroup/a", memory__max=2 * GB, memory__current=GB)
    write(linux / "cgroup/a", memory__stat=f"anon 1\ninactive_file {GB // 2}")
    write(linux / "cgroup/a/b", memory__max="max", memory__current=GB)
    found = memory.machine()
    assert found.available_bytes == 2 * GB - GB // 2 and "control group" in found.source
    # Version 1.
    write(linux / "proc/self", cgroup="5:cpu:/x\n4:memory:/x\n0::/")
    folder = linux / "cgroup/memory"
    write(folder, memory__limit_in_bytes=3 * GB, memory__usage_in_bytes=GB)
    write(folder / "x", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GB)
    assert memory.machine().available_bytes == 2 * GB


def test_an_apple_gpu_gives_its_working_set(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"max_recommended_working_set_size": 12 * GB, "memory_size": 17 * GB}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    found = memory.machine()
    assert (found.device, found.total_bytes, found.available_bytes) == ("gpu", 17 * GB, 12 * GB)
    assert found.limit_bytes < 12 * GB


def test_limits_hold_within_and_are_put_back() -> None:
    limit = mx.set_memory_limit(1 << 40)
    mx.set_memory_limit(limit)
    cache = mx.set_cache_limit(123 << 20)
    try:
        with pytest.raises(KeyError), memory.limits(GB) as given:
            assert given == GB
            now = mx.set_memory_limit(GB)
            assert now == GB
            raise KeyError
        assert mx.set_memory_limit(limit) == limit
        assert mx.set_cache_limit(123 << 20) == 123 << 20
    finally:
        mx.set_memory_limit(limit)
        mx.set_cache_limit(cache)
