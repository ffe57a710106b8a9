"""Scores: a model on rows, its base beside it; several models on the same rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mlx_itune.api.answers import placed
from mlx_itune.api.rows import Observe, PathLike, labelled
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.sources import load_splits, split_paths
from mlx_itune.export.fusing.fidelity import Reference
from mlx_itune.inference.answers_page import made
from mlx_itune.inference.evaluate import EvalResult, EvalSettings, kept_rows
from mlx_itune.inference.evaluate import evaluate as evaluate_one
from mlx_itune.inference.judge import Judge
from mlx_itune.inference.opening import Opening, open_adapter, open_model, open_tokenizer, rows_of
from mlx_itune.kit.errors import ItuneError, ModelError, UsageError
from mlx_itune.kit.files import refuse_taken, sha256_file, write_new
from mlx_itune.kit.settings import records
from mlx_itune.kit.wording import listing
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.loading.base import LoadedModel, load, resolve, vet
from mlx_itune.training.run.naming import rows_of_run


@dataclass(frozen=True)
class Wanted:
    """What is done with answers besides scoring them. Raises UsageError, StorageError before any
    work."""

    out: Path | None = None
    html: Path | None = None
    fail_under: float | None = None
    judge: str | None = None
    judge_model: str = "default"
    allow_remote: bool = False

    def require(self, generates: bool) -> Judge | None:
        """The judge, if one is asked for; raises where something cannot be given."""
        asked = {name for name in ("out", "html", "fail_under", "judge") if getattr(self, name)}
        if asked and not generates:
            flags = listing(f"--{name.replace('_', '-')}" for name in sorted(asked))
            raise UsageError(f"{flags} needs answers", hint="leave out --no-generate")
        for path in filter(None, (self.out, self.html)):
            refuse_taken(path)
        return Judge(self.judge, self.judge_model, self.allow_remote) if self.judge else None


@dataclass(frozen=True)
class Judged:
    """A judge's grades, 1 to 5: their mean, how many there are, and answers that got none."""

    mean: float | None
    graded: int
    failed: int


@dataclass(frozen=True)
class Graded(EvalResult):
    """A model's scores, and a judge's where one was asked. `answers` are not in the JSON."""

    judge: Judged | None = None


@dataclass(frozen=True)
class Evaluated(Graded):
    """Of base + adapter, or of the model without one; `base`: of the base beside it. `passed`:
    whether the score is at least `fail_under`."""

    base: Graded | None = None
    out: Path | None = None
    html: Path | None = None
    fail_under: float | None = None
    passed: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Results and grades by model ("base", "tuned"); the last one is what is looked at."""

    name: str
    results: dict[str, EvalResult]
    grades: dict[str, list[int | None]]
    wanted: Wanted

    @property
    def last(self) -> EvalResult:
        """Of the model that is looked at."""
        return list(self.results.values())[-1]

    def judged(self, label: str) -> Judged | None:
        """What the judge says of a model's answers, if there is one."""
        if not self.grades:
            return None
        given = [grade for grade in self.grades[label] if grade is not None]
        failed = len(self.grades[label]) - len(given)
        return Judged(fmean(given) if given else None, len(given), failed)

    def result(self, notes: Sequence[str] = ()) -> Evaluated:
        """All of it as one record."""
        label = list(self.results)[-1]
        base = self._of("base") if label != "base" and len(self.results) > 1 else None
        least, score, wanted = self.wanted.fail_under, self.last.score, self.wanted
        passed = None if least is None else score is not None and score >= least
        return Evaluated(
            **vars(self._of(label)),
            base=base,
            out=wanted.out,
            html=wanted.html,
            fail_under=least,
            passed=passed,
            notes=tuple(notes),
        )

    def _of(self, label: str) -> Graded:
        return Graded(**vars(self.results[label]), judge=self.judged(label))

    def write(self, training: Callable[[], Sequence[Conversation]]) -> None:
        """The files that are wanted. Raises StorageError."""
        if self.wanted.out:
            rows = kept_rows(self.results, self.grades)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_new(self.wanted.out, (line.encode() for line in lines))
        if self.wanted.html:
            text = made(self.name, self.results, training(), self.grades)
            write_new(self.wanted.html, text.encode("utf-8", errors="backslashreplace"))


def evaluate(
    model: str | None,
    data: PathLike,
    *,
    adapter: PathLike | None = None,
    split: str = "auto",
    base: bool = True,
    runs: PathLike = "runs",
    observe: Observe | None = None,
    **how: Any,
) -> Evaluated:
    """Exact loss on all rows, and answers scored; `base`: with an adapter its base, too. `data`: a
    file, or a folder, of which `split` says which part (auto: test, else valid, else train). `how`:
    generate, max_length, max_new_tokens, batch_size, score, pattern, schema; out, html, fail_under,
    judge, judge_model, allow_remote; template, template_option, system, compute, allow_other_base.
    Raises DataError, ModelError, UsageError, StorageError."""
    given = {**how, **placed(model, adapter, runs)}
    opening, settings, wanted = records(given, Opening, EvalSettings, Wanted)
    where: dict[str, Any] = {"split": split, "base": base, "runs": runs, "observe": observe}
    notes: list[str] = []
    return measured(opening, Path(data), settings, wanted, tell=notes.extend, **where).result(notes)


def measured(
    opening: Opening,
    data: Path,
    settings: EvalSettings,
    wanted: Wanted,
    *,
    split: str = "auto",
    base: bool = True,
    runs: PathLike = "runs",
    observe: Observe | None = None,
    tell: Callable[[Sequence[str]], None],
) -> Measured:
    """`evaluate`, of settings at hand; `tell` gets the notes before the work."""
    judge = wanted.require(settings.generate)
    name, rows = rows_of(data, split)
    trained = open_adapter(opening)
    tokenizer = open_tokenizer(opening)
    tell([*tokenizer.notes, *_learned_before(trained, data, name)])
    loaded = load(opening.model, compute=opening.compute)
    loaded.model.eval()

    def run(label: str) -> EvalResult:
        return evaluate_one(loaded, tokenizer, rows, settings, labelled(observe, label))

    results = {"base": run("base")} if base or trained is None else {}
    if trained is not None:
        adapters.apply(loaded, trained)
        loaded.model.eval()
        results["tuned"] = run("tuned")

    def graded(judge: Judge, label: str) -> list[int | None]:
        answers, seen = results[label].answers, labelled(observe, label)
        return judge.grades(answers, lambda done: seen("judged", done, len(answers)))

    grades = {label: graded(judge, label) for label in results} if judge else {}
    found = Measured(name, results, grades, wanted)
    found.write(lambda: _training_rows(trained, data, Path(runs)))
    return found


def _learned_before(trained: Adapter | None, data: Path, split: str) -> Iterator[str]:
    """A word where the rows are those that the adapter was trained on."""
    learned = {
        source.get("sha256")
        for source in (trained.origin.data if trained else ())
        if Path(str(source.get("path"))).name.partition(".")[0] not in ("valid", "test")
    }
    paths = [path for part, path in split_paths(data).items() if part.startswith("train")]
    if (split == "train" or data.is_file()) and any(sha256_file(p) in learned for p in paths):
        yield "the adapter was trained on these rows; how it does on others they cannot tell"


def _training_rows(trained: Adapter | None, data: Path, runs: Path) -> Sequence[Conversation]:
    """What the adapter learned: by its run where that is at hand, else the train file beside the
    rows; nothing where neither can be read."""
    if trained and (found := rows_of_run(trained, runs)):
        return found[1].train
    with contextlib.suppress(ItuneError):
        return load_splits(data).train if data.is_dir() else ()
    return ()


@dataclass(frozen=True)
class ComparedModel:
    """One model; KL in nats per learned token from the reference."""

    model: str
    loss: float
    perplexity: float
    exact_match: float | None
    token_f1: float | None
    kl_mean: float
    kl_p99: float
    top1_agreement: float


@dataclass(frozen=True)
class Compared:
    """Models on the same rows. reference: what the KL of each is from, "tuned" or "base"."""

    rows: int
    tokens: int
    reference: str
    models: tuple[ComparedModel, ...]
    split: str
    tasks: int


def compare(
    model: str | None,
    others: Sequence[PathLike],
    data: PathLike,
    *,
    adapter: PathLike | None = None,
    observe: Observe | None = None,
    **how: Any,
) -> Compared:
    """Loss and scores of the base, the base with its adapter, and other models (fused, exported) on
    the same rows, and how far each is from the tuned one. `how`: generate, max_new_tokens, ... as
    `evaluate` takes them. Raises what that raises."""
    opening, settings = records({**how, **placed(model, adapter)}, Opening, EvalSettings)
    return compared(opening, others, Path(data), settings, observe=observe)


def compared(
    opening: Opening,
    others: Sequence[PathLike],
    data: Path,
    settings: EvalSettings,
    *,
    observe: Observe | None = None,
    tell: Callable[[Sequence[str]], None] = lambda notes: None,
) -> Compared:
    """`compare`, of settings at hand; `tell` gets the notes before the work."""
    split, rows = rows_of(data)
    for other in others:
        # A mistyped name is told before the hours that the others take.
        vet(resolve(str(other)))
    reference, tokenizer = open_model(opening)
    tell(tokenizer.notes)
    tuned = Reference(reference.model, prepare(rows, tokenizer).examples)

    def one(name: str, loaded: LoadedModel, own: Any) -> ComparedModel:
        if own.hf.get_vocab() != tokenizer.hf.get_vocab():
            raise ModelError("has another vocabulary; nothing to compare", where=name)
        result = evaluate_one(loaded, own, rows, settings, labelled(observe, name))
        numbers = {**vars(result), **vars(tuned.compare(loaded.model)), "model": name}
        return ComparedModel(**{each.name: numbers[each.name] for each in fields(ComparedModel)})

    found = []
    told = tuple(f"{name}={json.dumps(value)}" for name, value in tokenizer.options.items())
    bare = replace(opening, adapter=None, template_option=told, system=tokenizer.system or "")
    if opening.adapter:
        # The base reads the adapter's template, or its prompts would be other ones.
        found.append(one("base", *open_model(replace(bare, template=tokenizer.name))))
    name = "tuned" if opening.adapter else "base"
    found.append(one(name, reference, tokenizer))
    for other in map(str, others):
        found.append(one(other, *open_model(replace(bare, model=other))))
    tasks = len({row.tags.get("task") for row in rows})
    return Compared(len(rows), tuned.tokens, name, tuple(found), split, tasks)
