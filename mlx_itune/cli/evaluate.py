"""``eval``: loss and scores, the base beside the tuned model; ``compare``: of any models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.wording import brief, count, listing, number, percent

if TYPE_CHECKING:
    from mlx_itune.api.scoring import Compared, Evaluated, Graded, Measured, Wanted
    from mlx_itune.inference.evaluate import EvalResult, EvalSettings, TaskScore
    from mlx_itune.inference.opening import Opening

_COLUMNS = ("model", "loss", "exact match", "token F1", "mean KL", "p99 KL", "same first choice")
# The exit code of a score below --fail-under.
_BELOW = 8
_CONFUSIONS, _FIELDS = 10, 10


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
    "mlx_itune.api.scoring:Wanted",
    options.flags("out-of-eval html-of-eval fail-under judge judge-model allow-remote"),
)
def command(opening: Opening, settings: EvalSettings, wanted: Wanted, **how: Any) -> Result:
    """Exact loss on all rows, and answers scored; base against tuned with --adapter.

    Exit code 8: the score is below --fail-under.
    """
    from mlx_itune.api.scoring import measured
    from mlx_itune.cli.progress import Progress

    rows = how.pop("data")
    with Progress() as progress:
        observe = progress.update
        told = measured(opening, rows, settings, wanted, observe=observe, tell=options.tell, **how)
    found = told.result()
    data = _without_answers(found)
    if found.base:
        data["base"] = _without_answers(found.base)
    code = _BELOW if found.passed is False else 0
    return Result(data, _Told(told, found, settings).lines(), exit_code=code)


def _without_answers(found: Graded) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name != "answers"}


@dataclass(frozen=True)
class _Told:
    """What was measured, for people; the last result is what is looked at."""

    measured: Measured
    found: Evaluated
    settings: EvalSettings

    @property
    def last(self) -> EvalResult:
        return self.measured.last

    @property
    def results(self) -> dict[str, EvalResult]:
        return self.measured.results

    def lines(self) -> Iterator[Any]:
        """Numbers, overall and per task, the base beside where it is known; then what is wrong."""
        each, last = list(self.results.values()), self.last
        tokens = count(last.supervised_tokens, "learned token")
        yield f"{self.measured.name}: {count(last.rows, 'row')}, {tokens}"
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
        for label in self.measured.grades:
            if (judged := self.measured.judged(label)) is None:
                continue
            failed = f", {judged.failed} failed" if judged.failed else ""
            mean = number(judged.mean, 3)
            yield f"judge, {label}: {mean} of 5 on {count(judged.graded, 'row')}{failed}"
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
        if wrong and not self.found.html:
            yield "--html FILE shows them, --out FILE keeps every answer"
        for path in filter(None, (self.found.out, self.found.html)):
            yield f"written: {path}"
        if self.found.passed is False:
            score, least = percent(last.score), percent(self.found.fail_under)
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
    from mlx_itune.api.scoring import compared
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        seen = progress.update
        about = compared(opening, others, data, settings, observe=seen, tell=options.tell)
    return Result(about, _compared(about))


def _compared(about: Compared) -> Iterator[Any]:
    yield f"{about.split}: {count(about.rows, 'row')}, {count(about.tokens, 'learned token')}"
    if about.tasks > 1:
        yield f"exact match and token F1: mean over {about.tasks} tasks"
    yield table(
        _COLUMNS,
        [
            [
                Path(each.model).name,
                number(each.loss),
                percent(each.exact_match),
                percent(each.token_f1),
                number(each.kl_mean, 2),
                number(each.kl_p99, 2),
                percent(each.top1_agreement),
            ]
            for each in about.models
        ],
    )
