"""Everything a run needs, brought up in order of cost: names, rows, then weights."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.batching import Batch, batches
from mlx_itune.dataset.rendering.prepare import (
    StoredExamples,
    Tokenized,
    tokenized,
    write_examples,
)
from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.sources import split_paths
from mlx_itune.dataset.tokens.dialect import template_options
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.kit import network
from mlx_itune.kit.errors import DataError, ModelError, UsageError
from mlx_itune.kit.files import require_free_bytes, sha256_file
from mlx_itune.kit.json_files import plain
from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.engine import cpu
from mlx_itune.model.loading import backend
from mlx_itune.model.loading.base import LoadedModel, load, resolve, vet
from mlx_itune.training.engine.footprint import cpus
from mlx_itune.training.engine.memory_plan import require_fit, workload
from mlx_itune.training.engine.rank_choice import ranks
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.engine.step_ways import ways_for, with_backward
from mlx_itune.training.run import checkpoint, run
from mlx_itune.training.settings import TrainSettings

ROWS = "rows"
# These may change between two sessions of a run: where things are is checked by content, and how
# often the run is saved does not change what it computes.
_FREE = frozenset("model data out runs offline save_every save_every_s keep_checkpoints".split())


@dataclass(frozen=True)
class Material:
    """What is there before any weight is loaded: the model's config and the rows as tokens."""

    path: Path
    config: Mapping[str, Any]
    tokenizer: ChatTokenizer
    limit_tokens: int
    rows: Tokenized
    train: Sequence[TokenizedExample]
    valid: Sequence[TokenizedExample]
    # What a resumed run compares (see run/resume): of the tokenizer and of the rows it made.
    facts: Mapping[str, Any]
    rows_not_used: int

    @property
    def rows_used(self) -> int:
        """Rows that at least one example was made of."""
        return self.rows.train.report.rows - self.rows_not_used


@dataclass(frozen=True)
class Setup:
    """A run that is ready to learn."""

    settings: TrainSettings
    material: Material
    loaded: LoadedModel
    learner: Learner
    config: adapter.AdapterConfig
    layers: tuple[str, ...]
    # What was decided for the user, a line each.
    notes: tuple[str, ...] = ()
    search: run.RateSearch | None = None
    # When the last step has to be over, by the monotonic clock.
    ends: float | None = None

    def plan(self) -> list[Batch]:
        """Every step of the run."""
        s, rows = self.settings, self.material.train
        ends: dict[str, Any] = {"epochs": s.planned_epochs, "steps": s.steps}
        lengths = s.lengths_of(rows)
        return [*batches(len(rows), s.rows_per_step, seed=s.seed, lengths=lengths, **ends)]

    def require_same_everywhere(self) -> None:
        """Raise UsageError where another process of the run has other rows, settings or base."""
        began = self.beginning()
        self.learner.ranks.require_same(
            {**began.settings, **began.model, "versions": began.versions}
        )

    def beginning(self) -> run.Beginning:
        """What this run would begin with here and now; its id is not known yet."""
        ways = dict(self.learner.ways.words)
        how = run.How(
            processes=self.learner.ranks.size,
            lanes=len(self.learner.streams),
            compute=self.loaded.compute,
            micro_batch_tokens=int(ways.pop("micro_batch_tokens")),
            ways=ways,
        )
        function = {f"base.config.{name}": v for name, v in self.loaded.function.items()}
        facts = {"base.fingerprint": self.loaded.fingerprint, **plain(function)}
        return run.Beginning(
            id="",
            directory=str(Path.cwd()),
            settings=settings_facts(self.settings),
            data=data_facts(Path(self.settings.data)),
            model={**facts, **self.material.facts},
            base=self.loaded.id,
            how=how,
            machine=run.Machine(
                platform.machine(), platform.system(), cpus(), backend.prepare().device
            ),
            versions=dict(run.versions()),
            learning_rate_search=self.search,
        )


def gather(settings: TrainSettings, *, kept_rows: Path | None = None) -> Material:
    """Rows and tokenizer; no weights yet. kept_rows: a run folder that may hold rows (`keep_rows`).

    Raises UsageError, DataError, ModelError, StorageError.
    """
    if settings.offline:
        network.go_offline()
    path = resolve(settings.model)
    config = vet(path)
    told = template_options(settings.template_option)
    tokenizer = load_tokenizer(path, template=settings.template, options=told)
    context = config.get("max_position_embeddings")
    longest = settings.max_length
    limit = min(longest, context) if isinstance(context, int) else longest
    rows = tokenized(
        Path(settings.data),
        tokenizer,
        seed=settings.seed,
        how=settings.reading,
        max_length_tokens=limit,
        learn=settings.learn,
        too_long=settings.too_long,
        overlap=settings.overlap,
    )
    if settings.strict and rows.train.report.unshown:
        raise DataError(next(rows.train.report.about_template(tokenizer)), hint="without --strict")
    if settings.strict and rows.told.lost:
        raise DataError(next(rows.told.lines()), hint="without --strict")
    # What every row begins with is what inference is to begin with.
    (first, *others) = rows.train.report.systems or [""]
    tokenizer.system = None if others else first or None
    train: Sequence[TokenizedExample] = rows.train.examples
    valid: Sequence[TokenizedExample] = rows.valid.examples if rows.valid else ()
    if kept_rows is not None and (kept_rows / ROWS / "train").is_dir():
        train = StoredExamples(kept_rows / ROWS / "train")
        valid = StoredExamples(kept_rows / ROWS / "valid")
    if settings.early_stopping and not valid:
        raise UsageError("early stopping needs validation rows", hint="add a valid.jsonl")
    _check_vocabulary(path, config, (*train, *valid))
    facts = {
        "tokenizer": tokenizer.fingerprint(),
        "template": tokenizer.name,
        "template_sha256": tokenizer.template_sha256,
        "tokens": rows_digest(train, valid),
    }
    return Material(path, config, tokenizer, limit, rows, train, valid, facts, _not_used(rows))


def settings_facts(settings: TrainSettings) -> dict[str, Any]:
    """Every setting that the numbers depend on."""
    return {name: value for name, value in plain(settings).items() if name not in _FREE}


def data_facts(data: Path) -> dict[str, run.DataFile]:
    """The files that are trained on or validated with, by part. Raises DataError."""
    return {
        part: run.DataFile(path.name, sha256_file(path))
        for part, path in split_paths(data).items()
        if part.partition("/")[0] != "test"
    }


def rows_digest(*parts: Iterable[TokenizedExample]) -> str:
    """SHA-256 over ids and weights of all examples in order: what the run learns, to the bit."""
    digest = hashlib.sha256()
    for part in parts:
        for example in part:
            digest.update(len(example.input_ids).to_bytes(8, "little"))
            digest.update(example.input_ids.astype("<i4", copy=False).tobytes())
            digest.update(example.weights.astype("<f4", copy=False).tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def _not_used(rows: Tokenized) -> int:
    """Rows that nothing is learned of: without a turn to learn, or too long and dropped whole."""
    report = rows.train.report
    dropped = set(report.dropped)
    if dropped and report.rows != len(dropped) + len(report.nothing_to_learn):
        dropped -= {example.origin for example in rows.train.examples}
    return len(report.nothing_to_learn) + len(dropped)


def keep_rows(folder: Path, material: Material) -> None:
    """Keep the tokens of a run whose template writes the date: tomorrow they would be others."""
    if "strftime_now" in material.tokenizer.template_text:
        for name, part in (("train", material.train), ("valid", material.valid)):
            (folder / ROWS / name).mkdir(parents=True)
            write_examples(folder / ROWS / name, part)


def ready(
    settings: TrainSettings, material: Material, *, began: run.Beginning | None = None
) -> Setup:
    """Weights, adapter and learner. began: the run.json of the run that is resumed, if one is.

    Raises ModelError; ResourceError where it will not fit; StorageError on a disk too full.
    """
    every = (*material.train, *material.valid)
    work = workload(settings, material.path, material.config, every)
    require_fit(work)
    loaded = load(
        settings.model,
        compute=settings.compute,
        memory_bytes=settings.memory_bytes,
    )
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("rank", "scale", "dropout")}
    how["kind"] = settings.adapter
    keys, last = settings.keys or None, settings.num_layers
    paths = lora.attach(loaded.model, keys=keys, num_layers=last, seed=settings.seed, **how)
    config = adapter.config_of(loaded.model, **how)
    computed = settings
    if began is not None and began.settings == settings_facts(settings):
        # What was chosen when the run began, unless this session was told something else.
        chosen = began.how.micro_batch_tokens
        computed = dataclasses.replace(settings, micro_batch_tokens=chosen)
    # As many lanes, too: how a step is cut decides the last bits of its sums.
    lanes = began.how.lanes if began else None
    ways = with_backward(
        ways_for(loaded.model, computed, len(cpu.streams(lanes))),
        loaded.model,
        computed,
        settings.rows_per_step * sum(len(row.input_ids) for row in every) // len(every),
        chosen=began.how.ways.get("backward") if began else None,
        ranks=ranks(),
    )
    learner = Learner(loaded.model, computed, lanes=lanes, ranks=ranks(), ways=ways)
    # The checkpoints that are kept, one more while it is written, and the adapter.
    needed = checkpoint.size_bytes(learner) * (settings.keep_checkpoints + 3)
    require_free_bytes(Path(settings.runs), needed, "saving this run")
    search = began.learning_rate_search if began else None
    return Setup(settings, material, loaded, learner, config, tuple(paths), search=search)


def _check_vocabulary(
    path: Path, config: Mapping[str, Any], examples: Sequence[TokenizedExample]
) -> None:
    size = config.get("vocab_size")
    highest = max(int(example.input_ids.max()) for example in examples)
    if isinstance(size, int) and highest >= size:
        raise ModelError(
            f"the tokenizer makes token {highest}, the model knows {size}",
            where=str(path),
            hint="the tokenizer is not this model's",
        )
