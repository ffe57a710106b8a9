"""``eval``: loss and scores, the base beside the tuned model; ``compare``: of any models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import ItuneError, ModelError, UsageError
from mlx_itune.kit.wording import brief, count, listing, number, percent

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.inference.evaluate import EvalResult, EvalSettings, TaskScore
    from mlx_itune.inference.opening import Opening
    from mlx_itune.model.adapters.adapter import Adapter

_COLUMNS = ("model", "loss", "exact match", "token F1", "mean KL", "p99 KL", "same first choice")
# The exit code of a score below --fail-under.
_BELOW = 8
_CONFUSIONS, _FIELDS = 10, 10
_NUMBERS = (
    *("loss", "perplexity", "exact_match", "token_f1"),
    *("kl_mean", "kl_p99", "top1_agreement"),
)


@dataclass(frozen=True)
class Wanted:
    """What `eval` gives besides its table. Raises UsageError, StorageError before any work."""

    out: Path | None
    html: Path | None
    fail_under: float | None
    judge: str | None
    judge_model: str
    allow_remote: bool

    def require(self, generates: bool) -> None:
        """Raise where it cannot be given."""
        from mlx_itune.kit.files import refuse_taken

        asked = {name for name in ("out", "html", "fail_under", "judge") if getattr(self, name)}
        if asked and not generates:
            flags = listing(f"--{name.replace('_', '-')}" for name in sorted(asked))
            raise UsageError(f"{flags} needs answers", hint="leave out --no-generate")
        for path in filter(None, (self.out, self.html)):
            refuse_taken(path)


@options.command("eval")
@options.opening
@options.flags("data split base runs")
@options.as_record(
    "settings",
    "mlx_itune.inference.evaluate:EvalSettings",
    options.flags(
        "generate max-length max-new-tokens batch-size score-of-answers pattern schema-to-score-by"
    ),
)
@options.as_record(
    "wanted",
    "mlx_itune.cli.evaluate:Wanted",
    options.flags("out-of-eval html-of-eval fail-under judge judge-model allow-remote"),
)
def command(opening: Opening, settings: EvalSettings, wanted: Wanted, **how: Any) -> Result:
    """Exact loss on all rows, and answers scored; base against tuned with --adapter.

    Exit code 8: the score is below --fail-under.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.inference.evaluate import evaluate
    from mlx_itune.inference.judge import Judge
    from mlx_itune.inference.opening import open_adapter, open_tokenizer, rows_of
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import load

    wanted.require(settings.generate)
    judge = None
    if wanted.judge:
        judge = Judge(wanted.judge, wanted.judge_model, wanted.allow_remote)
    name, rows = rows_of(how["data"], how["split"])
    trained = open_adapter(opening)
    tokenizer = open_tokenizer(opening)
    options.tell((*tokenizer.notes, *(_learned_before(trained, how["data"], name))))
    loaded = load(opening.model, compute=opening.compute)
    loaded.model.eval()

    with Progress() as progress:

        def run(label: str) -> EvalResult:
            return evaluate(loaded, tokenizer, rows, settings, progress.labelled(label))

        results = {"base": run("base")} if how["base"] or trained is None else {}
        if trained is not None:
            adapters.apply(loaded, trained)
            loaded.model.eval()
            results["tuned"] = run("tuned")
        grades = dict[str, list[int | None]]()
        for label, result in results.items() if judge else ():
            seen = partial(progress.update, f"{label} judged", total=len(result.answers))
            grades[label] = judge.grades(result.answers, seen) if judge else []
    told = _Told(name, results, grades, wanted, settings)
    told.write(lambda: _training_rows(trained, how["data"], how["runs"]))
    return Result(told.data(), told.lines(), exit_code=_BELOW if told.is_below else 0)


def _learned_before(trained: Adapter | None, data: Path, split: str) -> Iterator[str]:
    """A word where the rows are those that the adapter was trained on."""
    from mlx_itune.dataset.sources import split_paths
    from mlx_itune.kit.files import sha256_file

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
    from mlx_itune.dataset.sources import load_splits
    from mlx_itune.kit.settings import from_toml
    from mlx_itune.training.run.naming import run_of
    from mlx_itune.training.run.run import CONFIG, beginning_of
    from mlx_itune.training.settings import TrainSettings, settings_from

    folder = run_of(trained.origin, trained.path, runs) if trained else None
    with contextlib.suppress(ItuneError):
        if folder:
            settings = settings_from(from_toml(folder / CONFIG, TrainSettings))
            # As it was named where the run began.
            rows = Path(beginning_of(folder).directory) / settings.data
            return load_splits(rows, seed=settings.seed, how=settings.reading).train
    with contextlib.suppress(ItuneError):
        return load_splits(data).train if data.is_dir() else ()
    return ()


@dataclass(frozen=True)
class _Told:
    """What was measured, as JSON, as lines, and as files; the last result is what is looked at."""

    name: str
    results: dict[str, EvalResult]
    grades: dict[str, list[int | None]]
    wanted: Wanted
    settings: EvalSettings

    @property
    def last(self) -> EvalResult:
        return list(self.results.values())[-1]

    @property
    def is_below(self) -> bool:
        least, score = self.wanted.fail_under, self.last.score
        return least is not None and (score is None or score < least)

    def write(self, training: Callable[[], Sequence[Conversation]]) -> None:
        """The files that are wanted. Raises StorageError."""
        from mlx_itune.inference.answers_page import made
        from mlx_itune.inference.evaluate import kept_rows
        from mlx_itune.kit.files import write_new

        if self.wanted.out:
            rows = kept_rows(self.results, self.grades)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_new(self.wanted.out, (line.encode() for line in lines))
        if self.wanted.html:
            text = made(self.name, self.results, training(), self.grades)
            write_new(self.wanted.html, text.encode("utf-8", errors="backslashreplace"))

    def data(self) -> dict[str, Any]:
        """What --json prints: of the model that is looked at, and `base` beside."""
        label = list(self.results)[-1]
        found = {name: self._numbers(name) for name in self.results}
        beside = {"base": found["base"]} if len(found) > 1 else {}
        wanted = {name: getattr(self.wanted, name) for name in ("out", "html")}
        least = self.wanted.fail_under
        passed = {} if least is None else {"fail_under": least, "passed": not self.is_below}
        return {**found[label], **beside, **wanted, **passed}

    def _numbers(self, label: str) -> dict[str, Any]:
        numbers = {k: v for k, v in vars(self.results[label]).items() if k != "answers"}
        return numbers | ({"judge": self._judged(label)} if self.grades else {})

    def _judged(self, label: str) -> dict[str, Any]:
        given = [grade for grade in self.grades[label] if grade is not None]
        failed = len(self.grades[label]) - len(given)
        return {"mean": fmean(given) if given else None, "graded": len(given), "failed": failed}

    def lines(self) -> Iterator[Any]:
        """Numbers, overall and per task, the base beside where it is known; then what is wrong."""
        each, last = list(self.results.values()), self.last
        tokens = count(last.supervised_tokens, "learned token")
        yield f"{self.name}: {count(last.rows, 'row')}, {tokens}"
        rows = [
            ["loss (nats per token)", *(number(one.loss) for one in each)],
            ["perplexity", *(number(one.perplexity) for one in each)],
        ]
        if last.answers:
            rows += self._scores(each)
        yield table(["", *(self.results if len(each) > 1 else ["value"])], rows)
        if last.answers:
            yield from self._wrong()

    def _scores(self, each: Sequence[EvalResult]) -> Iterator[list[str]]:
        many, last = len(self.last.tasks) > 1, self.last
        of = f"mean over {len(last.tasks)} tasks" if many else "mean over rows"
        yield ["exact match, share of rows", *(percent(one.exact_match_rows) for one in each)]
        if {score.way for score in last.tasks.values()} - {"exact", "labels", "json"}:
            yield [f"{last.metric}, share of rows", *(percent(one.score) for one in each)]
        if many:
            yield [f"exact match, {of}", *(percent(one.exact_match) for one in each)]
        yield [f"token F1, {of}", *(percent(one.token_f1) for one in each)]
        for task, score in last.tasks.items():
            scores = [one.tasks[task] for one in each]
            if many:
                way = f"  {task} ({score.rows}, {score.way})"
                yield [way, *(percent(one.score) for one in scores)]
            for name, values in _details(scores):
                yield [f"    {name}" if many else name, *values]

    def _wrong(self) -> Iterator[Any]:
        """How answers were scored, what is taken for what, which rows are wrong."""
        last = self.last
        ways = {score.way for score in last.tasks.values()}
        found = self.settings.score == "auto" and self.settings.pattern is None
        why = ", as the references ask for (--score forces a way)" if found else ""
        yield f"scored as {listing(sorted(ways), 8)}{why}"
        for label in self.grades:
            judged = self._judged(label)
            failed = f", {judged['failed']} failed" if judged["failed"] else ""
            mean = number(judged["mean"], 3)
            yield f"judge, {label}: {mean} of 5 on {count(judged['graded'], 'row')}{failed}"
        confused = [c for s in last.tasks.values() if s.labels for c in s.labels.confused]
        if confused:
            confused = sorted(confused, key=lambda each: -each.rows)[:_CONFUSIONS]
            made = [
                [brief(c.reference, 40), brief(c.answer or "(nothing)", 40), f"{c.rows:,}"]
                for c in confused
            ]
            yield table(["most confused: it is", "answered with", "rows"], made)
        wrong = [Path(a.row.origin).name for a in last.answers if not a.is_right]
        if wrong:
            yield f"wrong: {len(wrong):,} of {len(last.answers):,} rows: {listing(wrong)}"
        if wrong and not self.wanted.html:
            yield "--html FILE shows them, --out FILE keeps every answer"
        for path in filter(None, (self.wanted.out, self.wanted.html)):
            yield f"written: {path}"
        if self.is_below:
            score, least = percent(last.score), percent(self.wanted.fail_under)
            yield f"{last.metric} {score} is below --fail-under {least}: exit code {_BELOW}"


def _details(scores: Sequence[TaskScore]) -> Iterator[tuple[str, list[str]]]:
    """What labels and JSON objects have besides exact match, of each model."""
    if labels := [score.labels for score in scores if score.labels]:
        yield f"macro-F1 over {labels[-1].labels} labels", [percent(s.macro_f1) for s in labels]
        yield "answers that are no label", [f"{s.outside:,}" for s in labels]
    if objects := [score.json for score in scores if score.json]:
        yield "valid JSON", [percent(s.valid) for s in objects]
        if objects[-1].schema_valid is not None:
            yield "valid by the schema", [percent(s.schema_valid) for s in objects]
        yield "fields right", [percent(s.field_accuracy) for s in objects]
        worst = sorted(objects[-1].fields.items(), key=lambda item: item[1].accuracy)
        for path, field in worst[:_FIELDS]:
            values = [percent(s.fields[path].accuracy) for s in objects]
            yield f"  {brief(path, 40)} ({field.rows:,})", values


@options.command("compare")
@options.flags("others")
@options.opening
@options.flags("data")
@options.as_record(
    "settings",
    "mlx_itune.inference.evaluate:EvalSettings",
    options.flags("generate max-new-tokens"),
)
def compare(opening: Opening, others: Sequence[str], data: Path, settings: EvalSettings) -> Result:
    """Loss and scores of the base, the base with its adapter, and every MODEL, on the same rows.

    KL, in nats per learned token, is the divergence from base + adapter (without an adapter, from
    the base): what shipping that model instead would change.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.rendering.prepare import prepare
    from mlx_itune.export.fusing.fidelity import Reference
    from mlx_itune.inference.evaluate import evaluate
    from mlx_itune.inference.opening import open_model, rows_of
    from mlx_itune.model.loading.base import resolve, vet

    split, rows = rows_of(data)
    for other in others:
        # A mistyped name is told before the hours that the others take.
        vet(resolve(other))
    reference, tokenizer = open_model(opening)
    options.tell(tokenizer.notes)
    tuned = Reference(reference.model, prepare(rows, tokenizer).examples)

    def measured(name: str, loaded: Any, own: Any) -> dict[str, Any]:
        if own.hf.get_vocab() != tokenizer.hf.get_vocab():
            raise ModelError("has another vocabulary; nothing to compare", where=name)
        with Progress() as progress:
            result = evaluate(loaded, own, rows, settings, progress.labelled(name))
        numbers = {**vars(result), **vars(tuned.compare(loaded.model))}
        return {"model": name, **{key: numbers[key] for key in _NUMBERS}}

    found = []
    told = tuple(f"{name}={json.dumps(value)}" for name, value in tokenizer.options.items())
    bare = replace(opening, adapter=None, template_option=told, system=tokenizer.system or "")
    if opening.adapter:
        # The base reads the adapter's template, or its prompts would be other ones.
        found.append(measured("base", *open_model(replace(bare, template=tokenizer.name))))
    name = "tuned" if opening.adapter else "base"
    found.append(measured(name, reference, tokenizer))
    found += [measured(other, *open_model(replace(bare, model=other))) for other in others]
    about = {"rows": len(rows), "tokens": tuned.tokens, "reference": name, "models": found}
    tasks = len({row.tags.get("task") for row in rows})
    return Result(about, _compared(split, about, tasks))


def _compared(split: str, about: dict[str, Any], tasks: int) -> Iterator[Any]:
    yield f"{split}: {count(about['rows'], 'row')}, {count(about['tokens'], 'learned token')}"
    if tasks > 1:
        yield f"exact match and token F1: mean over {tasks} tasks"
    yield table(
        _COLUMNS,
        [
            [
                Path(each["model"]).name,
                number(each["loss"]),
                percent(each["exact_match"]),
                percent(each["token_f1"]),
                number(each["kl_mean"], 2),
                number(each["kl_p99"], 2),
                percent(each["top1_agreement"]),
            ]
            for each in about["models"]
        ],
    )
