"""`data import` from end to end: read, select, mix, split, write."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.folder import FolderWriter
from mlx_itune.dataset.importing.groups import group_of
from mlx_itune.dataset.importing.inputs import Inputs
from mlx_itune.dataset.importing.ledger import content_hash
from mlx_itune.dataset.importing.plan import Outcome, Plan
from mlx_itune.dataset.importing.splitting import Splitter, achieved, position
from mlx_itune.dataset.importing.survey import (
    MOST_SOURCES,
    OnBytes,
    Survey,
    group_hash,
    mixes,
    needs_survey,
    rows_of,
    survey_rows,
    wanted,
)
from mlx_itune.kit.errors import DataError, UsageError

FAULTS_KEPT = 50
_ATTEMPTS = 5
_VALUES_SHOWN = 8


class _Refused(Exception):
    """Nothing is to be written; the outcome says why."""


def run(
    plan: Plan,
    out: Path,
    *,
    settings: Mapping[str, Any],
    about: Mapping[str, Mapping[str, Any]],
    licences: Mapping[str, str],
    operator: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Outcome:
    """Write the data folder `out` as planned; rows are streamed, twice where a choice needs it.

    Raises DataError when no row fits --where, UsageError for tags and sources that are not there.
    """
    # Refuses an unusable `out` before hours of reading.
    FolderWriter(out, "import", plan.inputs)
    tell = on_bytes or (lambda stage, done, total: None)
    survey = survey_rows(plan, tell) if needs_survey(plan) else None
    moved: dict[int, str] = {}
    # Strata that share rows can ask for contrary things; then the last answer has to do.
    for attempts_left in reversed(range(_ATTEMPTS)):
        outcome = Outcome()
        splitter = Splitter(plan.shares, moved) if plan.shares else None
        if survey:
            survey.rewind()
        try:
            with FolderWriter(
                out,
                "import",
                plan.inputs,
                settings=settings,
                about=about,
                licences=licences,
                operator=operator,
            ) as writer:
                _write(plan, writer, outcome, survey, splitter, tell)
                if splitter and attempts_left and (missing := splitter.missing()):
                    raise _Again
                _describe(plan, writer, outcome, survey, splitter)
        except _Again:
            moved = missing
            continue
        except _Refused:
            return outcome
        outcome.written = True
        outcome.splits = {name: count for name, count in writer.counts.items() if count}
        outcome.left_out = dict(writer.left_out)
        outcome.sources = writer.description["sources"]
        outcome.ledger = writer.entry["hash"]
        break
    return outcome


class _Again(Exception):
    """A split stayed empty that small data can fill: read once more."""


def _write(
    plan: Plan,
    writer: FolderWriter,
    outcome: Outcome,
    survey: Survey | None,
    splitter: Splitter | None,
    tell: OnBytes,
) -> None:
    keeps_splits = any(file.split == "train" for file in plan.inputs.files)
    samples = survey is not None and bool(survey.samplers)
    written: Counter[str] = Counter()
    seen: dict[str, dict[str, None]] = {condition.key: {} for condition in plan.where}
    has_stratum = False
    for file, row in rows_of(plan, tell, "import"):
        if isinstance(row, Fault) and row.severity != "error":
            if len(outcome.warnings) < FAULTS_KEPT:
                outcome.warnings.append(row)
            continue
        outcome.rows += 1
        if isinstance(row, Fault):
            outcome.rejected += 1
            if len(outcome.faults) < FAULTS_KEPT:
                outcome.faults.append(row)
            writer.reject(row)
            continue
        outcome.accepted += 1
        path = row.origin.rpartition(":")[0]
        if not wanted(plan, row):
            _remember(seen, row.tags)
            writer.leave_out(path, "where")
            continue
        content = content_hash(row)
        source = row.tags["source"]
        if samples and survey and not survey.take(source if mixes(plan) else "", content):
            writer.leave_out(path, "mix" if mixes(plan) else "sample")
            continue
        split = "train"
        if splitter:
            stratum = row.tags.get(plan.stratify, "") if plan.stratify else ""
            has_stratum |= stratum != ""
            split = splitter.choose(_place(plan, survey, row, content), stratum)
            if len(splitter.counts) > MOST_SOURCES:
                raise UsageError(f"{plan.stratify!r} has too many values to stratify by")
        elif keeps_splits and file.split:
            split = file.split
        writer.add(split, row, content=content)
        written[source] += 1
    if (plan.strict and outcome.rejected) or not outcome.accepted:
        raise _Refused
    if not written:
        raise DataError(_nothing(plan, seen), where=", ".join(sorted(_names(plan.inputs))))
    if plan.stratify and not has_stratum:
        raise UsageError(f"no row has a tag {plan.stratify!r} to stratify by")
    if survey and survey.shares:
        total = written.total()
        outcome.mix = {
            "requested": survey.shares,
            "achieved": {name: written[name] / total for name in survey.shares},
            "available": survey.sizes,
        }


def _place(plan: Plan, survey: Survey | None, row: Conversation, content: int) -> int:
    name = content
    if plan.group_by and survey:
        name = survey.groups.root(group_hash(group_of(row, plan.group_by), content))
    return position(name.to_bytes(8, "big"), plan.seed)


def _describe(
    plan: Plan,
    writer: FolderWriter,
    outcome: Outcome,
    survey: Survey | None,
    splitter: Splitter | None,
) -> None:
    if splitter and plan.shares:
        if moved := len(splitter.moved):
            what = "row or group" if moved == 1 else "rows or groups"
            outcome.notes.append(f"{moved} {what} moved so that no split is empty")
        if any(file.split == "train" for file in plan.inputs.files):
            outcome.notes.append("--split cut the sources anew; the splits they had are not kept")
        outcome.split = achieved(plan.shares, splitter, strata=plan.stratify is not None)
        writer.description["split"] = dataclasses.asdict(outcome.split)
    if outcome.mix:
        writer.description["mix"] = outcome.mix
        asked, came = outcome.mix["requested"], outcome.mix["achieved"]
        off = max(abs(asked[name] - came[name]) for name in asked)
        if off > 0.01:
            outcome.notes.append(f"a source's share is {100 * off:.1f} points off what was asked")
    if plan.sample is not None and sum(writer.counts.values()) < plan.sample:
        outcome.notes.append(
            f"{sum(writer.counts.values()):,} rows, not {plan.sample:,}: "
            + ("more would change the mixture" if survey and survey.shares else "there are no more")
        )


def _remember(seen: Mapping[str, dict[str, None]], tags: Mapping[str, str]) -> None:
    for key, values in seen.items():
        if key in tags and len(values) < _VALUES_SHOWN:
            values.setdefault(tags[key])


def _nothing(plan: Plan, seen: Mapping[str, Mapping[str, None]]) -> str:
    if not plan.where:
        return "no row is left to write"
    wanted = " and ".join(map(str, plan.where))
    found = [
        f"{key} is {', '.join(map(repr, values))}" if values else f"no row has a tag {key!r}"
        for key, values in seen.items()
    ]
    return f"no row with {wanted} ({'; '.join(found)})"


def _names(inputs: Inputs) -> set[str]:
    return {file.name for file in inputs.files}
