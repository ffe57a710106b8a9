"""`train`: settings in, adapter out. `work` is what a new and a resumed run share: signals wait, a
Mac stays awake, and there is a word when its GPU's watchdog strikes."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_itune.kit.errors import ItuneError, ResourceError, StorageError
from mlx_itune.kit.events import EventLog
from mlx_itune.kit.lock import locked
from mlx_itune.kit.wording import brief
from mlx_itune.model.adapters import adapter
from mlx_itune.model.engine import memory
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.job import Job, Observe, Paused
from mlx_itune.training.engine.rank_choice import is_writer, own_place
from mlx_itune.training.engine.rate_search import search
from mlx_itune.training.engine.time_limit import within
from mlx_itune.training.run import report, run
from mlx_itune.training.run.run import Record, TrainResult, resume_line
from mlx_itune.training.settings import TrainSettings
from mlx_itune.training.settle import settled, usual
from mlx_itune.training.setup import Setup, gather, keep_rows, ready

__all__ = ["Observe", "TrainResult", "train"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OUT_OF_MEMORY = ("insufficient memory", "outofmemory", "out of memory", "unable to allocate")
WATCHDOG_HINT = (
    "macOS stops GPU work that holds up the display: let the display sleep, lower "
    "--micro-batch-tokens, or set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"
)
# Waits for the trainer ($1) as caffeinate does anyway. A trainer that ends in an orderly way stops
# this script first; one that is aborted (MLX cannot turn a failed command buffer into an exception:
# the process dies of SIGABRT) leaves it to say what can be done.
_WATCH = 'caffeinate -i -w "$1"; printf "\\n%s\\n" "$2" >&2'


def train(
    settings: TrainSettings, *, observe: Observe = lambda _: None, pause: float | None = None
) -> TrainResult:
    """Train an adapter and write it, with its provenance, to `settings.out`.

    observe gets one dict per event ("start", "step", "valid", "checkpoint", "incident", "warning",
    "early_stop", "stopped", "end"), as the run's events.jsonl does. Ctrl-C or SIGTERM ends the run
    after the current step, with a checkpoint from which `resume` goes on; a second one at once.
    pause: after this share of the steps the run is sealed in the same way, and Paused raised.
    Raises UsageError, DataError, ModelError, StorageError, DivergedError, ResourceError.
    """
    began = time.monotonic()
    with own_place(settings) as s:
        run.require_free_name(Path(s.out))
        asked, material = s, gather(s)
        s, notes = settled(s, material)
        setup = dataclasses.replace(ready(s, material), notes=notes)
        with _trying(s):
            if s.time is not None:
                setup = within(setup, asked, began)
            if s.learning_rate == "auto":
                setup = _with_rate(setup, observe)
        setup.require_same_everywhere()
        folder = run.create(
            setup.settings, setup.beginning(), lambda stage: keep_rows(stage, material)
        )
        with locked(folder / run.LOCK, f"run {run.id_of(folder)}"):
            return work(setup, folder, Record(), observe=observe, began=began, pause=pause)


@contextlib.contextmanager
def _trying(s: TrainSettings) -> Iterator[None]:
    """What is computed before there is a run that could be resumed."""
    limit = memory.machine(s.memory_gb).limit_bytes
    with memory.limits(limit), explained_gpu_errors("the same command"):
        yield


def _with_rate(setup: Setup, observe: Observe) -> Setup:
    """The setup with a learning rate that was searched for."""
    s, plan = setup.settings, setup.plan()
    below = 1 / s.lora_plus_ratio
    rows, first = setup.material.train, usual(s, setup.material)
    found = search(setup.learner, rows, plan, first, below=below, tell=observe)
    rate, cost = found.learning_rate, len(found.curve) * found.steps
    note = f"--learning-rate auto takes {rate:g}: "
    note += f"the trials took {cost} steps" if cost else f"{len(plan)} steps are too few for trials"
    settings = dataclasses.replace(s, learning_rate=rate)
    return dataclasses.replace(setup, settings=settings, search=found, notes=(*setup.notes, note))


def work(
    setup: Setup,
    folder: Path,
    record: Record,
    *,
    observe: Observe,
    began: float,
    resumed: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    pause: float | None = None,
) -> TrainResult:
    """Run from where `record` stands, under the run's lock. resumed: fields of its event."""
    line = resume_line(str(folder))
    with EventLog(folder / run.EVENTS) as log:

        def seen(event: dict[str, Any]) -> None:
            observe(event)
            if event["event"] in ("valid", "checkpoint"):
                _page(folder, job)

        job = Job(setup, folder, log if is_writer() else None, record, seen, began)
        if pause is not None:
            job.pause_at = max(1, round(pause * job.last))
        job.tell("start", **_start(setup, folder, job))
        if resumed is not None:
            job.tell("resume", **resumed)
        # What is loaded by now stays; without this each step scans it for garbage, some 4 % of it.
        gc.freeze()
        try:
            with (
                memory.limits(memory.machine(setup.settings.memory_gb).limit_bytes),
                kept_awake(line),
                explained_gpu_errors(line),
                deferred_signals() as received,
            ):
                if job.learn(received):
                    return job.finish(Path(setup.settings.out), overwrite=overwrite)
        except Exception as error:
            code = error.exit_code if isinstance(error, ItuneError) else ItuneError.exit_code
            job.tell("failed", step=record.step, message=str(error), exit_code=code, resume=line)
            if isinstance(error, StorageError) and error.hint is None:
                error.hint = f"nothing that was sealed is lost; then continue with: {line}"
            raise
        finally:
            gc.unfreeze()
            _page(folder, job, is_over=True)
    if not received:
        raise Paused(str(folder))
    # The signal was delivered again, and whoever handles it let it pass: the run is over anyway.
    raise KeyboardInterrupt


def _page(folder: Path, job: Job, *, is_over: bool = False) -> None:
    """The run's page as it stands; a run does not fail for it."""
    try:
        if is_writer():
            report.write(folder, is_over=is_over)
    except Exception as error:
        job.warn(f"no report.html: {error}")


def _start(setup: Setup, folder: Path, job: Job) -> dict[str, Any]:
    machine = backend.prepare()
    return {
        "run": str(folder),
        "steps": job.last,
        "examples": len(job.train),
        "planned_examples": sum(len(batch.rows) for batch in job.plan[: job.last]),
        "rows_used": setup.material.rows_used,
        "rows_not_used": setup.material.rows_not_used,
        "valid_examples": len(setup.material.valid),
        "valid_rows": len(job.valid),
        "eval_every": setup.settings.eval_every,
        "trainable_parameters": sum(
            t.size for t in adapter.tensors_of(setup.loaded.model).values()
        ),
        "layers": len(setup.layers),
        "compute": setup.loaded.compute,
        "device": machine.device,
        "note": machine.note,
        "paths": setup.learner.ways.words,
        "max_length_tokens": setup.material.limit_tokens,
        "tokens_kept": setup.material.rows.kept,
        "report": dataclasses.asdict(setup.material.rows.train.report),
        **({"notes": setup.notes} if setup.notes else {}),
    }


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Signals wait in the yielded list; a second one goes at once to whoever handled it before.

    When the block is done, the first is delivered. A signal that is ignored (nohup) stays ignored.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            restore()
            signal.raise_signal(signal.Signals(number))

    try:
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    except ValueError:
        # Only the main thread may handle signals; elsewhere they are the caller's.
        yield received
        return
    try:
        yield received
    finally:
        restore()
    if received:
        signal.raise_signal(signal.Signals(received[0]))


@contextlib.contextmanager
def kept_awake(resume_line: str) -> Iterator[None]:
    """No idle sleep during the block; if this process dies in it, the terminal says how to go on.

    Only on macOS, by the system's own caffeinate; elsewhere, or without it, nothing happens.
    """
    child = None
    if sys.platform == "darwin":
        words = f"training was cut off; continue with: {resume_line}  ({WATCHDOG_HINT})"
        command = ["/bin/sh", "-c", _WATCH, "sh", str(os.getpid()), words]
        nowhere = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            # A session of its own: Ctrl-C is for the trainer.
            child = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, start_new_session=True)
    try:
        yield
    finally:
        if child is not None:
            # The script and, with it, the caffeinate that it waits for.
            with contextlib.suppress(OSError):
                os.killpg(child.pid, 15)
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                child.wait(timeout=5)


@contextlib.contextmanager
def explained_gpu_errors(resume_line: str) -> Iterator[None]:
    """Turn MLX's errors for a failed command buffer or allocation into a ResourceError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = brief(error, 200)
        short = str(error).lower().replace("_", "")
        resume = f"continue with: {resume_line}"
        if isinstance(error, MemoryError) or any(word in short for word in _OUT_OF_MEMORY):
            raise ResourceError(
                f"out of memory ({said})",
                hint=f"close other programs, then {resume}; or start anew with a lower "
                "--micro-batch-tokens or --max-length",
            ) from error
        if "command buffer" in short or "[metal]" in short:
            raise ResourceError(
                f"the GPU gave up ({said})", hint=f"{WATCHDOG_HINT}; then {resume}"
            ) from error
        raise
