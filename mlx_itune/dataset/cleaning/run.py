"""`data clean` from end to end: steps and presets by name; rows through them into a new folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlx_itune.dataset.checking.check import SystemPrompts, split_of
from mlx_itune.dataset.checking.lints import Lint, load_lints
from mlx_itune.dataset.checking.near_duplicates import Duplicates, Spool
from mlx_itune.dataset.cleaning import row_steps
from mlx_itune.dataset.cleaning.pii.find import known_kinds
from mlx_itune.dataset.cleaning.pii.redact import redact, redact_conversation
from mlx_itune.dataset.cleaning.plan import CleanPlan
from mlx_itune.dataset.cleaning.rows import Outcome, Row, RowStep, as_it_is, refusal_of, with_turns
from mlx_itune.dataset.conversation import Conversation, Fault, Turn
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.importing.folder import FolderWriter, new_folder
from mlx_itune.dataset.sources import read_rows
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import known

_HTML = "html-to-text copy-code list-numbers trim-leading trim-trailing drop-irregular"
_REPEATS = "id-duplicates exact-duplicates pair-duplicates"
PRESETS = {
    "default": "whitespace empty-answers control-text exact-duplicates near-duplicates".split(),
    "sharegpt": f"{_HTML} empty-answers too-short refusals control-text {_REPEATS}".split(),
    "alpaca": "whitespace empty-answers refusals exact-duplicates near-duplicates".split(),
}
# What `refusals` drops beside the lints that say so themselves.
_PRESET_CODES = {"alpaca": ("url-only", "attachment", "merged-instructions", "no-words")}
# Steps that work on rows which break the rules of a conversation.
MENDING = ("trim-leading", "trim-trailing", "merge-turns", "drop-irregular", "empty-answers")
# Rows with what becomes of each; what was repeated by (source of the repeat, source of the first).
Told = Iterator[tuple[Row, Outcome | None]]
Sources = Counter[tuple[str, str]]
Step = Callable[[Iterable[Row]], Told]


@dataclass(frozen=True)
class Steps:
    """What a plan and the lints say: the steps in order, and what each of them is told."""

    plan: CleanPlan
    lints: Sequence[Lint]

    @property
    def names(self) -> list[str]:
        """The steps; those that options add come before the duplicates that they lay open."""
        plan = self.plan
        names = plan.names("steps") or list(PRESETS[plan.preset or "default"])
        more = {"unify-system": plan.unify_system, "language": plan.language, "pii": plan.pii}
        more["system"] = plan.system
        for name, asked in more.items():
            if asked and name not in names:
                whole = (at for at, other in enumerate(names) if other.endswith("-duplicates"))
                names.insert(next(whole, len(names)), name)
        return names

    @property
    def kinds(self) -> list[str] | None:
        """The kinds of personal data to redact, None for all. Raises UsageError."""
        kinds = self.plan.names("pii")
        if kinds in ([], ["all"]):
            return None
        known_kinds(kinds)
        return kinds

    @property
    def dropping(self) -> list[Lint]:
        """The lints whose rows `refusals` drops: named, marked so, or the preset's."""
        lints = {lint.code: lint for lint in self.lints}
        more = _PRESET_CODES.get(self.plan.preset or "", ())
        marked = [code for code, lint in lints.items() if lint.drop or code in more]
        return [lints[known("lint", code, lints)] for code in self.plan.names("drop") or marked]

    @property
    def control_text(self) -> tuple[str, ...]:
        """The control strings that the lints name. Raises UsageError where they name none."""
        texts = [lint.texts for lint in self.lints if lint.code == "template-text" and lint.texts]
        if not texts:
            raise UsageError("the lints name no control strings: no template-text with texts")
        return texts[0]

    @property
    def scripts(self) -> list[str]:
        """The scripts to keep. Raises UsageError."""
        names = self.plan.names("language")
        if not names:
            hint = "give --language, such as latin or cjk"
            raise UsageError("the step 'language' needs scripts", hint=hint)
        return [known("script", name, row_steps.SCRIPTS) for name in names]

    def make(self, repeats: Sources) -> dict[str, Step]:
        """The steps in order; what is found twice is counted in `repeats`. Raises UsageError."""
        made: dict[str, Step] = {}
        for name in self.names:
            known("step", name, {**ROW_STEPS, **WHOLE_STEPS})
            if name in made:
                raise UsageError(f"the step {name!r} is given twice")
            if name in MENDING and not WHOLE_STEPS.keys().isdisjoint(made):
                what = f"the step {name!r} mends rows and comes too late"
                raise UsageError(what, hint="put it before the steps that compare rows")
            if name in ROW_STEPS:
                made[name] = partial(_each, ROW_STEPS[name](self))
            else:
                made[name] = partial(WHOLE_STEPS[name], self, repeats)
        return made

    def settings(self) -> dict[str, Any]:
        """What a new folder says of how it was made: the steps, and the options they read."""
        read: dict[str, dict[str, Any]] = {
            "refusals": {"drop": [lint.code for lint in self.dropping]},
            "too-short": {"min-chars": self.plan.min_chars},
            "language": {
                "language": self.plan.names("language"),
                "script-share": self.plan.script_share,
            },
            "pii": {"pii": self.kinds or "all"},
            "system": {"system": self.plan.system, "system-mode": self.plan.system_mode},
            "near-duplicates": {"similarity": self.plan.similarity},
        }
        settings: dict[str, Any] = {"steps": self.names}
        for name in self.names:
            settings |= read.get(name, {})
        return settings


def drop_repeats(
    rows: Iterable[Row],
    kind: Literal["exact", "near", "pair", "id"],
    sources: Sources,
    threshold: float = 1.0,
) -> Told:
    """Keep the first of rows that say the same; each repeat is counted in `sources`."""
    near = kind == "near"
    repeats: dict[int, tuple[int, int]] = {}  # of each the row before it, and how alike in %
    pairs: dict[int, int] = {}
    with (
        closing(Spool[Row]()) as spool,
        closing(Duplicates(near=near, threshold=threshold)) as duplicates,
    ):
        for row in rows:
            number = spool.append(row)
            if kind == "pair":
                said = [turn.content for turn in row.now.turns if turn.role != "system"][:2]
                first: int | None = pairs.setdefault(hash((*said,)), number)
            elif kind == "id":
                name = row.now.tags.get("id")
                first = pairs.setdefault(hash(name), number) if name else None
            else:
                first = duplicates.add(row.now)
            if first is not None and first != number:
                repeats[number] = first, 100
        for best, *_ in duplicates.near():
            repeats[best.later] = best.earlier, int(100 * best.similarity)
        for number, row in enumerate(spool):
            if number not in repeats:
                yield row, None
                continue
            first, percent = repeats[number]
            earlier = spool[first].before
            sources[source_of(row.before), source_of(earlier)] += 1
            told = f"{percent} % the same as" if percent < 100 else "repeats"
            told = {"pair": "begins like", "id": "has the id of"}.get(kind, told)
            yield row, Outcome(None, f"{told} {earlier.origin}")


def unify_system(rows: Iterable[Row]) -> Told:
    """Write system prompts that differ in spelling only the way that most rows do."""
    prompts = SystemPrompts()
    with closing(Spool[Row]()) as spool:
        for row in rows:
            spool.append(row)
            if row.now.turns[0].role == "system":
                prompts.add(row.now.turns[0].content, row.now.origin)
        usual = prompts.usual()
        for row in spool:
            first, *rest = row.now.turns
            text = usual.get(first.content) if first.role == "system" else None
            said = "system prompt spelled as in most rows"
            yield row, with_turns(row.now, [Turn("system", text), *rest], said) if text else None


def source_of(row: Conversation) -> str:
    """The `source` that a row names, or else its file."""
    return row.tags.get("source") or row.origin.rpartition(":")[0].replace("\\", "/").split("/")[-1]


ROW_STEPS: dict[str, Callable[[Steps], RowStep]] = {
    "html-to-text": lambda _: row_steps.html_to_text,
    "copy-code": lambda _: row_steps.remove_copy_code,
    "list-numbers": lambda _: row_steps.number_lists,
    "single-round": lambda _: row_steps.keep_first_round,
    "whitespace": lambda _: row_steps.normalise_whitespace,
    "trim-leading": lambda _: row_steps.trim_leading,
    "trim-trailing": lambda _: row_steps.trim_trailing,
    "merge-turns": lambda _: row_steps.merge_turns,
    "drop-irregular": lambda _: row_steps.drop_irregular,
    "empty-answers": lambda _: row_steps.drop_empty_answers,
    "too-short": lambda steps: row_steps.drop_short(steps.plan.min_chars),
    "language": lambda steps: row_steps.keep_scripts(steps.scripts, steps.plan.script_share),
    "refusals": lambda steps: row_steps.drop_linted(steps.dropping),
    "control-text": lambda steps: row_steps.break_control_text(steps.control_text),
    "drop-control-text": lambda steps: row_steps.drop_linted(
        [Lint("control-text", texts=steps.control_text)]
    ),
    "pii": lambda steps: row_steps.redact_personal_data(steps.kinds),
    "system": lambda steps: row_steps.put_system(steps.plan.system_prompt),
}
WHOLE_STEPS: dict[str, Callable[[Steps, Sources, Iterable[Row]], Told]] = {
    "unify-system": lambda _, __, rows: unify_system(rows),
    "id-duplicates": lambda _, repeats, rows: drop_repeats(rows, "id", repeats),
    "exact-duplicates": lambda _, repeats, rows: drop_repeats(rows, "exact", repeats),
    "pair-duplicates": lambda _, repeats, rows: drop_repeats(rows, "pair", repeats),
    "near-duplicates": lambda steps, repeats, rows: drop_repeats(
        rows, "near", repeats, steps.plan.similarity
    ),
}


def _each(step: RowStep, rows: Iterable[Row]) -> Told:
    return ((row, step(row.now)) for row in rows)


# Of two equal rows the held-out one stays: training rows are taken out of the evaluation's way.
_ORDER = {"test": 0, "valid": 1, "train": 2}
# Reads a file's rows: its path, what mends a row, who is told of bytes read.
Reader = Callable[..., Iterator[Conversation | Fault]]


@dataclass
class Cleaned:
    """What came in and what came out: rows = kept + removed + rejected. Of each step the rows in,
    kept, changed and removed: in = kept + removed."""

    rows: int = 0
    kept: int = 0
    changed: int = 0
    removed: int = 0
    rejected: int = 0
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    duplicate_sources: Sources = field(default_factory=Counter)
    told: Account = field(default_factory=Account)
    ledger: str = ""


def clean(
    sources: Sequence[Path],
    out: Path,
    plan: CleanPlan,
    *,
    lints: Path | None = None,
    read: Reader = read_rows,
) -> Cleaned:
    """Run the steps over every row of `sources` and write the data folder `out`. Raises DataError
    for broken rows unless they are passed over, and when no row is left; UsageError for steps that
    cannot be."""
    result = Cleaned()
    chosen = Steps(plan, load_lints(lints))
    steps = chosen.make(result.duplicate_sources)
    settings = chosen.settings() | ({"lints": lints.name} if lints else {})
    # Rows are legal from the last step on that mends them.
    last = max((at for at, name in enumerate(steps, 1) if name in MENDING), default=0)
    with new_folder(out, "clean", sources, settings=settings, operator=plan.operator) as writer:
        run = _Run(writer, result, plan.keep_going, chosen.kinds if "pii" in steps else ())
        rows = run.read(read, as_it_is if last else None)
        for at, (name, step) in enumerate(steps.items(), 1):
            result.steps[name] = {"in": 0, "kept": 0, "changed": 0, "removed": 0}
            rows = run.through(name, step(rows))
            rows = run.legal(rows) if at == last else rows
        for row in rows:
            run.write(row)
        run.refuse_broken()
    result.splits = {split: count for split, count in writer.counts.items() if count}
    result.rejected, result.faults = writer.rejected, writer.faults
    result.ledger = writer.record.seal
    return result


@dataclass
class _Run:
    writer: FolderWriter
    result: Cleaned
    keep_going: bool
    # Kinds of personal data that are nowhere to be shown: None for all.
    hidden: Sequence[str] | None

    def read(self, read: Reader, mend: Callable[..., Conversation | None] | None) -> Iterator[Row]:
        files = [
            (file.split or split_of(file.path) or "train", file.path)
            for file in self.writer.inputs.files
        ]
        for split, path in sorted(files, key=lambda item: _ORDER[item[0]]):
            for item in read(path, mend=mend):
                self.result.rows += 1
                if isinstance(item, Fault):
                    self.reject(item)
                else:
                    yield Row(split, item, item)
        self.refuse_broken()

    def legal(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that could be trained on; the others are broken ones."""
        for row in rows:
            if problem := refusal_of(row.now):
                self.reject(problem)
            else:
                yield row

    def through(self, name: str, told: Told) -> Iterator[Row]:
        count = self.result.steps[name]
        for row, outcome in told:
            count["in"] += 1
            if outcome and outcome.row is None:
                count["removed"] += 1
                self.result.removed += 1
                detail = self._said(outcome.detail)
                self.writer.remove(row.before, name, detail, show=self._may_show(row))
                continue
            count["kept"] += 1
            if outcome and outcome.row is not None:
                count["changed"] += 1
                row = replace(row, now=outcome.row, notes=(*row.notes, (name, outcome.detail)))
            yield row

    def write(self, row: Row) -> None:
        self.result.kept += 1
        if not row.notes:
            self.writer.add(row.split, row.now)
            return
        self.result.changed += 1
        self.writer.add(
            row.split,
            row.now,
            before=row.before,
            reason="+".join(dict.fromkeys(name for name, _ in row.notes)),
            detail="; ".join(f"{name}: {detail}" for name, detail in row.notes),
            show_before=self._may_show(row),
        )

    def reject(self, fault: Fault) -> None:
        if fault.severity != "error":
            self.result.rows -= 1
            return
        self.writer.reject(replace(fault, message=self._said(fault.message)))

    def refuse_broken(self) -> None:
        """Stop, if any row was broken and that was not to be passed over."""
        if self.writer.rejected and not self.keep_going:
            first = " | ".join(map(str, self.writer.faults[:3]))
            hint = "--keep-going leaves them out and lists them in rejected.jsonl"
            raise DataError(f"{self.writer.rejected} rows are broken: {first}", hint=hint)

    def _said(self, text: str) -> str:
        return text if self.hidden == () else redact(text, self.hidden)[0]

    def _may_show(self, row: Row) -> bool:
        """Whether a row's old text may be kept: not, if it is what was to be removed."""
        return self.hidden == () or not redact_conversation(row.before, self.hidden)[1]
