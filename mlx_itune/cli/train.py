"""``train``, ``resume``, and ``plan``, which says what a run would take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs
from mlx_itune.kit.errors import ResourceError, UsageError
from mlx_itune.kit.json_files import read_bytes
from mlx_itune.kit.settings import from_toml
from mlx_itune.kit.wording import count, duration, name_here, number, size
from mlx_itune.training.settings import TrainSettings, table

if TYPE_CHECKING:
    from mlx_itune.training.engine.memory_plan import Plan
    from mlx_itune.training.run.run import TrainResult


# --config and the flag of every setting; what they may be is checked by `_settings_of`, with the
# file's values, all at once.
_settings = options.together(
    options.flags("config"),
    *(options.flag(s, checked=False) for name, s in table().items() if name != "offline"),
)


def _settings_of(config: Path | None, offline: bool, given: Mapping[str, Any]) -> TrainSettings:
    """Flags over a config file's values over defaults. Raises UsageError, StorageError."""
    from mlx_itune.api.training import settings_of

    if config is not None and config.suffix.lower() in (".yaml", ".yml"):
        _refuse_yaml(config)
    return settings_of(config, {**given, "offline": offline or None})


def _refuse_yaml(path: Path) -> None:
    """Another tool's configuration: what each of its keys is called here."""
    text = read_bytes(path, error=UsageError, limit_bytes=1 << 20).decode(errors="replace")
    keys = dict.fromkeys(re.findall(r"^[ \t-]*([A-Za-z_][\w-]*)[ \t]*:", text, re.MULTILINE))
    here = {key: "alpha / rank" if key == "scale" else name_here(key, table()) for key in keys}
    told = [f"{key} is {name}" for key, name in here.items() if name and name != key]
    unknown = [key for key, name in here.items() if name is None]
    told += [f"unknown here: {', '.join(unknown)}"] if unknown else []
    what = "is YAML; a configuration is lines of `key = value` (TOML)"
    raise UsageError(what, where=str(path), hint="; ".join(told) or None)


@options.command("train")
@_settings
@options.flags("samples tensorboard wandb")
def command(
    config: Path | None, samples: int, offline: bool, tensorboard: Path | None, **given: Any
) -> Result | None:
    """Tune a model on a data set by an adapter; only the assistant's words are learned."""
    from mlx_itune.api.training import trained
    from mlx_itune.cli.progress import Progress
    from mlx_itune.training.engine.rank_choice import is_writer

    shown = {"samples": samples, "tensorboard": tensorboard, "wandb": given.pop("wandb")}
    settings = _settings_of(config, offline, given)
    if not is_writer():
        trained(settings, lambda event: None)
        return None
    with Progress() as progress:
        result = trained(settings, progress.training, **shown)
    return Result(result, _trained(result))


@options.command("resume")
@options.flags("run runs out-of-resume")
@options.flag(
    table()["micro_batch_tokens"], "For a run that did not fit; its last bits will differ."
)
@options.flag(table()["memory_gb"], "The same.")
@options.flags("allow-other-base")
def resume(
    run: str, runs: Path, out: Path | None, allow_other_base: bool, **how: Any
) -> Result | None:
    """Continue RUN (a folder, `last`, or the start of an id) from its last checkpoint, bit for bit.

    Refuses when settings (exit 2), rows (3), or base model, tokenizer and template (4) are not
    those the run began with, naming each; and while another process trains it (5).
    """
    from mlx_itune.api import training as api
    from mlx_itune.cli.progress import Progress
    from mlx_itune.training.engine.rank_choice import is_writer

    if not is_writer():
        # Its folder comes from process 0.
        api.resume(run, allow_other_base=allow_other_base, **how)
        return None
    with Progress() as progress:
        done = api.resume(
            run,
            runs=runs,
            out=out,
            allow_other_base=allow_other_base,
            observe=progress.training,
            **how,
        )
        if done.rewritten:
            progress.say("the run was finished; its adapter was missing and is written again")
        elif done.finished_before:
            progress.say("the run was finished, and its adapter is there: nothing to do")
    return Result(done, _trained(done))


def _trained(result: TrainResult) -> Iterator[str]:
    from mlx_itune.training.run.run import CONFIG

    # A run may end before it has come to every row.
    whole = result.examples >= result.rows_used
    used = f"{result.rows_used:,}" if whole else f"{result.examples:,} of {result.rows_used:,}"
    not_used = f", {result.rows_not_used:,} not used" if result.rows_not_used else ""
    speed = f"{result.supervised_tokens_per_second:,.0f} per second"
    facts = [
        ("adapter", f"{result.adapter} ({_shipped(result)})"),
        ("run", result.run),
        ("report", str(Path(result.run) / "report.html")),
        ("rows", f"{used} used{not_used}"),
        ("steps", f"{result.steps:,} ({result.epochs:g} epochs, {count(result.examples, 'row')})"),
        ("train loss", number(result.train_loss)),
        ("valid loss", _valid(result)),
        ("learned", f"{result.supervised_tokens:,} tokens, {speed}"),
        ("peak memory", size(result.peak_memory_bytes)),
        ("time", duration(result.wall_s)),
    ]
    if result.skipped_steps:
        note = f"{result.skipped_steps:,}, not finite; see {result.run}/incidents.jsonl"
        facts.insert(5, ("skipped", note))
    yield from pairs(facts)
    settings = from_toml(Path(result.run) / CONFIG, TrainSettings)
    flags = {"model": settings["model"], "adapter": result.adapter, "data": settings["data"]}
    typed = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())
    yield f"next: mlx-itune eval {typed}"


def _shipped(result: TrainResult) -> str:
    best, last = number(result.best_valid_loss), number(result.valid_loss)
    if result.adapter_step != result.steps:
        why = f"validation loss {best}, the last step's {last}"
        return f"of step {result.adapter_step:,} of {result.steps:,}, the best: {why}"
    shipped = f"of step {result.steps:,}, the last"
    if result.best_step not in (None, result.steps):
        return (
            f"{shipped}; step {result.best_step:,} had a lower validation loss: {best}, not {last}"
        )
    return shipped


def _valid(result: TrainResult) -> str:
    rows = result.adapter_valid_rows
    return f"{number(result.adapter_valid_loss)} on {count(rows, 'row')}" if rows else "no rows"


@options.command("plan")
@_settings
def plan(config: Path | None, offline: bool, **given: Any) -> Result:
    """Predict peak memory and time of a run of `train` with the same flags; exit 7: will not fit.

    Nothing is trained and no weight is loaded: sizes are read from the headers of the model's
    files, lengths from the tokenized rows.
    """
    from mlx_itune.api.training import planned

    made = planned(_settings_of(config, offline, {**given, "out": given["out"] or Path("adapter")}))
    return Result(made, _planned(made), exit_code=0 if made.fits else ResourceError.exit_code)


def _planned(made: Plan) -> Iterator[str]:
    yield from (f"note: {note}" for note in made.notes)
    verdict = "fits" if made.fits else "does not fit"
    yield from pairs(
        [
            ("peak memory", f"{size(made.peak_memory_bytes)}, {verdict}"),
            *((f"  {name}", size(count_bytes)) for name, count_bytes in made.breakdown.items()),
            ("may take", f"{size(made.limit_bytes)} ({made.limit_from})"),
            ("time per epoch", f"about {duration(made.time_per_epoch_s)}"),
            ("steps per epoch", f"{made.steps_per_epoch:,} ({made.tokens_per_epoch:,} tokens)"),
            ("longest row", f"{made.longest_tokens:,} tokens"),
            ("trains", f"{made.trainable_parameters:,} parameters"),
            ("compute", made.compute),
            ("checkpointing", "on" if made.gradient_checkpointing else "off"),
        ]
    )
    for suggestion in made.suggestions:
        verdict = "fits" if suggestion.fits else "still too much"
        yield f"try {suggestion.change}: {size(suggestion.peak_memory_bytes)}, {verdict}"
