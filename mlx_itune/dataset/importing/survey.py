"""The first of two readings: what has to be known of all rows before one can be chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.groups import Groups, group_of, short_hash
from mlx_itune.dataset.importing.inputs import InputFile
from mlx_itune.dataset.importing.ledger import content_hash
from mlx_itune.dataset.importing.plan import Plan
from mlx_itune.dataset.importing.select import Sampler
from mlx_itune.dataset.sources import read_rows
from mlx_itune.dataset.templating.mixing import mix, quotas
from mlx_itune.kit.errors import UsageError

MOST_SOURCES = 10_000

OnBytes = Callable[[str, int, int], None]


def rows_of(
    plan: Plan, tell: OnBytes, stage: str
) -> Iterator[tuple[InputFile, Conversation | Fault]]:
    """Every row of every file, good ones with a `source` tag."""
    sizes = [file.path.stat().st_size for file in plan.inputs.files]
    total, done = sum(sizes), 0

    def on_bytes(more: int) -> None:
        nonlocal done
        done += more
        tell(stage, min(done, total), total)

    for file, size in zip(plan.inputs.files, sizes, strict=True):
        after = done + size
        source = {"source": file.name}
        for row in read_rows(
            file.path,
            format=plan.format,
            columns=plan.columns or None,
            kind=plan.kind,
            on_bytes=on_bytes,
        ):
            if isinstance(row, Conversation) and "source" not in row.tags:
                tags = {**row.tags, **source}
                row = Conversation(row.turns, row.origin, row.tools, tags, checked=True)
            yield file, row
        done = after
    tell(stage, total, total)


def wanted(plan: Plan, row: Conversation) -> bool:
    return all(condition.holds(row.tags) for condition in plan.where)


@dataclass
class Survey:
    """What a first reading found out: how many rows to take of which source, and the groups."""

    samplers: dict[str, Sampler]
    groups: Groups
    sizes: dict[str, int]
    shares: dict[str, float] | None = None

    def take(self, source: str, content: int) -> bool:
        return self.samplers[source].take(content)

    def rewind(self) -> None:
        for sampler in self.samplers.values():
            sampler.rewind()


def needs_survey(plan: Plan) -> bool:
    return any(value is not None for value in (plan.sample, plan.cap, plan.weights, plan.group_by))


def mixes(plan: Plan) -> bool:
    return plan.cap is not None or plan.weights is not None


def survey_rows(plan: Plan, tell: OnBytes) -> Survey:
    selects = plan.sample is not None or mixes(plan)
    survey = Survey({}, Groups(), {})
    sizes: Counter[str] = Counter()
    without_group = 0
    for _, row in rows_of(plan, tell, "survey"):
        if isinstance(row, Fault) or not wanted(plan, row):
            continue
        source = row.tags["source"] if mixes(plan) else ""
        sizes[source] += 1
        content = content_hash(row)
        if selects:
            if source not in survey.samplers:
                if len(survey.samplers) >= MOST_SOURCES:
                    raise UsageError(
                        f"the rows name more than {MOST_SOURCES:,} sources, too many to mix"
                    )
                survey.samplers[source] = Sampler(plan.seed)
            survey.samplers[source].see(content)
        if plan.group_by:
            group = group_of(row, plan.group_by)
            without_group += group is None
            survey.groups.see(content, group_hash(group, content))
    total = sizes.total()
    if plan.group_by:
        if total and without_group == total:
            raise UsageError(f"no row has a tag {plan.group_by!r} to group by")
        survey.groups.join()
    survey.sizes = dict(sizes)
    if total and selects:
        _draw(plan, survey)
    return survey


def group_hash(group: bytes | None, content: int) -> int:
    return content if group is None else short_hash(b"group " + group)


def _draw(plan: Plan, survey: Survey) -> None:
    sizes, total = survey.sizes, sum(survey.sizes.values())
    if not mixes(plan):
        survey.samplers[""].draw(min(plan.sample or 0, total))
        return
    sizes = {name: sizes[name] for name in sorted(sizes)}
    shares = survey.shares = mix(sizes, cap=plan.cap, weights=plan.weights)
    # As many rows as keep the shares without taking any row twice.
    most = min(sizes[name] / share for name, share in shares.items() if share)
    if plan.weights is None and plan.sample is None and plan.cap is not None:
        counts = {name: min(rows, plan.cap) for name, rows in sizes.items()}
    else:
        rows = round(most) if plan.sample is None else min(plan.sample, round(most))
        counts = quotas(shares, rows)
    for name, sampler in survey.samplers.items():
        sampler.draw(min(counts[name], sizes[name]))
