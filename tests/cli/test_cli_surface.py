"""The command line's surface: help, did-you-means, one-line errors, exit codes, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

import mlx_itune.cli as cli_package
from mlx_itune.cli import COMMANDS, boundary
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import data_file

TRAIN = "train --model m --data d --out o"
PROGRAM = [sys.executable, "-m", "mlx_itune"]


class PanicException(BaseException):
    """As Rust under Python raises."""


def code_of(act: Callable[[], object]) -> int:
    """The exit code of a command that does this."""
    command = click.Command("act", callback=act)
    return boundary.guarded(click.Group("group", {"act": command}), ["act"])


def test_help_lists_every_command_and_is_quick() -> None:
    def cpu_seconds() -> float:
        before = os.times()
        done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        assert all(name in done.stdout for name in COMMANDS if " " not in name)
        return sum(after[2:4]) - sum(before[2:4])

    # 150 ms is promised on the wall clock. Nothing here waits, so on an idle machine that is the
    # processor time, which is what a busy test machine can measure.
    assert min(cpu_seconds() for _ in range(5)) < 0.15


@pytest.mark.parametrize("argv", [(), ("data",), ("runs",), ("models",)])
def test_a_bare_group_shows_its_help(cli: Any, argv: tuple[str, ...]) -> None:
    printed = cli(*argv)
    assert printed.out.startswith("Usage: mlx-itune") and "\nCommands:\n" in printed.out
    assert not printed.err


@pytest.mark.parametrize(
    "words",
    [
        "data import dataa/tickets.csv --out o",
        "data check dataa/tickets.csv",
        "tune dataa/tickets.csv",
    ],
)
def test_a_mistyped_path_is_no_data_set_of_the_hub(cli: Any, words: str) -> None:
    # Not --offline: the fixture that watches the network would tell.
    assert "dataa/tickets.csv: no such data file" in cli(*words.split(), code=3).err


def test_hints_name_no_package_of_ours_that_is_in_no_index() -> None:
    package = Path(cli_package.__file__).parents[1]
    texts = [file.read_text(encoding="utf-8") for file in package.rglob("*.py")]
    assert not [
        text for text in texts if "pip install 'mlx-itune" in text or "pip install mlx" in text
    ]


def test_what_other_tools_say_is_told_once() -> None:
    commands = data_file(cli_package.__file__, "elsewhere")["commands"]
    assert set(commands) <= set(COMMANDS)
    theirs = [each for listed in commands.values() for each in listed.split()]
    assert len(theirs) == len(set(theirs)) and not set(theirs) & set(COMMANDS)


def test_the_shell_completes_commands_and_flags() -> None:
    def completed(*words: str) -> list[str]:
        line = " ".join(("mlx-itune", *words))
        asked = {"_MLX_ITUNE_COMPLETE": "bash_complete", "COMP_WORDS": line}
        environment = {**os.environ, **asked, "COMP_CWORD": str(len(words))}
        done = subprocess.run(PROGRAM, capture_output=True, text=True, env=environment, check=False)
        assert not done.stderr
        return [each.partition(",")[2] for each in done.stdout.splitlines()]

    assert completed("mod") == ["models"] and completed("runs", "o") == ["open"]
    assert "--adapter" in completed("generate", "--ad")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("trian", "no such command 'trian'; did you mean 'train'?"),
        ("data chek", "no such command 'chek'; did you mean 'check'?"),
        ("train --modle x", "no such option '--modle'; did you mean --model?"),
        ("train --lr 1e-3", "did you mean --learning-rate?"),
        ("train --iters 9", "did you mean --steps?"),
        ("train --scale 9", "did you mean --alpha?"),
        ("train --adapter-path x", "did you mean --out?"),
        ("generate --adapter-path x", "did you mean --adapter?"),
        ("generate --n-predict 3", "did you mean --max-tokens?"),
        ("train --train", "leave it out: this command trains"),
        ("train --num-iters 9", "did you mean --steps?"),
        ("mlx_lm.lora --train", "did you mean 'train'?"),
        ("llama-server -m x", "did you mean 'serve'?"),
        ("pull x", "did you mean 'models get'?"),
        ("models pull x", "did you mean 'get'?"),
        ("finetune", "did you mean 'tune'?"),
        ("list", "did you mean 'models list' or 'runs list'?"),
        ("check x", "did you mean 'data check'?"),
        ("data lora", "did you mean 'train'?"),
        ("train --model x", "missing --data, --out"),
        ("plan --model x", "missing --data"),
        ("eval --model x", "Missing option '-d' / '--data'"),
        ("generate --model x --prompt=", "the prompt is empty"),
        ("train --learning-rate fast", "'fast' is neither a number nor auto"),
        ("train --rank many", "'many' is not a valid integer"),
        (
            f"{TRAIN} --learning-rate nan",
            "learning_rate must be auto, or above 0 and below 1, not nan",
        ),
        (f"{TRAIN} --time soon", "'soon' is no time; write it as 90s, 10m or 1h30m"),
        (f"{TRAIN} --alpha 1e300", "alpha must be above 0 and at most 1,000,000"),
        (f"{TRAIN} --warmup inf", "warmup must be at least 0"),
        (f"{TRAIN} --seed {10**26}", "seed must be at least 0 and at most"),
    ],
)
def test_usage_errors_are_one_line_with_exit_code_2(cli: Any, command: str, told: str) -> None:
    assert told in cli.refused(*command.split(), code=2)
    assert cli.json(*command.split(), code=2)["exit_code"] == 2


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
        (ZeroDivisionError("one\ntwo"), 1, "a bug in mlx-itune: ZeroDivisionError: one\\ntwo"),
    ],
)
def test_every_ending_has_its_exit_code_and_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    raised: BaseException,
    code: int,
    told: str,
) -> None:
    def failing() -> NoReturn:
        raise raised

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert code_of(failing) == code
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    # Only a bug leaves a traceback, in a file that the line names.
    crashes = [*tmp_path.iterdir()]
    assert len(crashes) == (code == 1)
    assert all(str(path) in err and "Traceback" in path.read_text() for path in crashes)


def test_a_signal_unwinds_the_command_and_those_behind_it_leave_the_clearing_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cleaned = []

    def waiting() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    assert code_of(waiting) == 130 and cleaned == [True]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_signal_that_comes_in_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Held:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def waiting() -> None:
        Held()
        time.sleep(5)

    assert code_of(waiting) == 143
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("redirect", "code", "out", "err"),
    [
        ("> /dev/full", 5, "", "error: standard output: No space left on device\n"),
        (">&-", 5, "", "error: standard output: is closed\n"),
        ("2> /dev/full", 0, '{"runs": []}\n', ""),
        ("<&- 2>&-", 0, '{"runs": []}\n', ""),
        ("--rnus 2> /dev/full", 2, '{"error": ', ""),
    ],
)
def test_streams_that_are_closed_or_full(redirect: str, code: int, out: str, err: str) -> None:
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = f"{' '.join(PROGRAM)} runs list --runs nowhere --json {redirect}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)
    assert done.stdout.startswith(out)


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [*PROGRAM, "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_name_that_is_no_text_is_told_in_escapes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.jsonl"
    try:
        Path(os.fsdecode(name)).write_text("{}\n")
    except OSError:
        pytest.skip("this disk takes no such names")
    done = subprocess.run([*PROGRAM, "data", "check", name, "--json"], capture_output=True)
    assert done.returncode == 3
    assert "\udcff" in json.loads(done.stdout)["error"]["where"]
    assert b"Traceback" not in done.stderr
