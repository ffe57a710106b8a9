"""The command line's surface: helps, did-you-means, one-line errors, exit codes, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from mlx_itune.cli import COMMANDS, boundary, cli, main
from mlx_itune.kit.errors import DataError


class PanicException(BaseException):
    """As Rust under Python raises."""


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(argv))
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_help_lists_every_command_and_is_quick() -> None:
    def cpu_seconds() -> float:
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "mlx_itune", "--help"], capture_output=True, text=True
        )
        after = os.times()
        assert done.returncode == 0
        assert all(name in done.stdout for name in COMMANDS)
        return sum(after[2:4]) - sum(before[2:4])

    # 150 ms is promised on the wall clock. Nothing here waits, so on an idle machine that is the
    # processor time, which is what a busy test machine can measure.
    assert min(cpu_seconds() for _ in range(5)) < 0.15


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert "Usage: mlx-itune" in out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["trian"], "no such command 'trian'; did you mean 'train'?"),
        (["data", "chek"], "no such command 'chek'; did you mean 'check'?"),
        (["train", "--modle", "x"], "no such option '--modle'; did you mean --model?"),
        (["train", "--model", "x"], "missing --data, --out"),
        (["eval", "--model", "x"], "Missing option '--data'"),
        (["generate", "--model", "x", "--prompt", " "], "the prompt is empty"),
        (["train", "--rank", "many"], "'many' is not a valid integer"),
    ],
)
def test_usage_errors_are_one_line_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], told: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err
    code, out, _ = run(capsys, *argv, "--json")
    body = json.loads(out)["error"]
    assert (code, body["exit_code"]) == (2, 2)


def test_a_mistyped_config_key_gets_a_did_you_mean(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('model = "x"\nlearning_rat = 1e-3\n')
    code, _, err = run(capsys, "train", "--config", str(config))
    assert code == 2
    assert "run.toml:2: unknown key 'learning_rat' (did you mean learning_rate?)" in err


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (DataError("bad row", where="a.jsonl:3"), 3, "a.jsonl:3: bad row"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (boundary.Terminated(signal.SIGTERM), 143, "terminated"),
        (boundary.Terminated(signal.SIGHUP), 129, "hung up"),
        (PanicException("index out of bounds"), 4, "a library gave up on a file"),
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), 7, "out of memory"),
        (MemoryError(), 7, "out of memory"),
        (PermissionError(13, "Permission denied", "rows"), 5, "rows: Permission denied"),
        (RuntimeError("Symlink loop from 'a'"), 5, "Symlink loop"),
        (UnicodeEncodeError("utf-8", "a x\udcff b", 3, 4, "no"), 2, r"'x\udcff' is no UTF-8 text"),
    ],
)
def test_every_ending_has_its_exit_code_and_one_line(
    capsys: pytest.CaptureFixture[str], raised: BaseException, code: int, told: str
) -> None:
    @click.command()
    def failing() -> None:
        raise raised

    group = click.Group("g", {"failing": failing})
    assert boundary.guarded(group, ["failing"]) == code
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_bug_leaves_a_crash_file_and_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    @click.command()
    def failing() -> None:
        raise ZeroDivisionError("one\ntwo")

    assert boundary.guarded(click.Group("g", {"failing": failing}), ["failing"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    (crash,) = tmp_path.iterdir()
    assert str(crash) in err
    assert "ZeroDivisionError" in crash.read_text()


def test_sigterm_unwinds_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    @click.command()
    def waiting() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    assert boundary.guarded(click.Group("g", {"waiting": waiting}), ["waiting"]) == 143
    assert cleaned == [True]


@pytest.mark.parametrize("argv", [[], ["data"], ["runs"]])
def test_a_bare_group_shows_its_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ")
    assert "\nCommands:\n" in out


@pytest.mark.parametrize("closed", ["full", "closed"])
def test_an_output_that_cannot_be_written_is_told(closed: str) -> None:
    redirect = "> /dev/full" if closed == "full" else ">&-"
    if closed == "full" and not Path("/dev/full").exists():
        redirect = ">&-"
    done = subprocess.run(
        f"{sys.executable} -m mlx_itune doctor {redirect}",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5
    assert done.stderr.startswith("error: standard output: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("redirect", ["2> /dev/full", "<&- 2>&-"])
def test_other_streams_that_are_closed_or_full_change_nothing(redirect: str) -> None:
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    for argv, code in (("train --json", 2), ("runs list --runs nowhere --json", 0)):
        done = subprocess.run(
            f"{sys.executable} -m mlx_itune {argv} {redirect}",
            shell=True,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code
        assert json.loads(done.stdout)
        assert "Traceback" not in done.stderr


def test_a_name_that_is_no_text_is_told_in_escapes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.jsonl"
    try:
        Path(os.fsdecode(name)).write_text("{}\n")
    except OSError:
        pytest.skip("this disk takes no such names")
    done = subprocess.run(
        [sys.executable, "-m", "mlx_itune", "data", "check", name, "--json"], capture_output=True
    )
    assert done.returncode == 3
    assert "\udcff" in json.loads(done.stdout)["error"]["where"]
    assert b"Traceback" not in done.stderr


def test_two_quick_signals_leave_the_clearing_alone(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    @click.command()
    def waiting() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    assert boundary.guarded(click.Group("g", {"waiting": waiting}), ["waiting"]) == 130
    assert cleaned == [True]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_signal_that_comes_in_a_finalizer_is_not_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Held:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    @click.command()
    def waiting() -> None:
        Held()
        time.sleep(5)

    assert boundary.guarded(click.Group("g", {"waiting": waiting}), ["waiting"]) == 143
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_pipe_is_no_error() -> None:
    script = "import sys; from mlx_itune.cli import main; main(['train', '--help'])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_the_table_is_the_truth() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
