"""``data stats``: what a data set is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.kit.errors import DataError, UsageError, one_line

if TYPE_CHECKING:
    from mlx_itune.dataset.statistics.stats import Stats
    from mlx_itune.dataset.statistics.tallies import Distribution, Ranking
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

_COLUMNS = ("min", "p5", "p50", "p90", "p95", "p99", "max")
_NAMES_SHOWN = 10
_FAULTS_SHOWN = 3


@options.command("stats", "mlx-itune data stats rows.jsonl --model starter --html stats.html")
@click.argument("data", nargs=-1, required=True, type=options.ANY_PATH, metavar="DATA...")
@click.option(
    "--model",
    metavar="MODEL",
    help="Count tokens too, with the tokenizer of 'starter', a model directory or a Hub id.",
)
@options.template
@click.option(
    "--learn",
    type=click.Choice(["all", "last", "marked"]),
    help="Which assistant turns count as learned (default all).",
)
@click.option("--max-length", type=click.IntRange(2), metavar="N", help="Count rows over N tokens.")
@reading.forced_format
@click.option("--html", type=options.ANY_PATH, metavar="FILE", help="Write a page with plots.")
def command(
    data: tuple[Path, ...],
    model: str | None,
    template: str | None,
    learn: Any,
    max_length: int | None,
    format_name: str | None,
    columns: tuple[str, ...],
    html: Path | None,
    as_json: bool,
    offline: bool,
) -> None:
    """What a data set is made of: splits, turns, roles, sources, writing systems, tools, lengths.

    DATA is a file or folder of rows of any format. With --model, tokens and learned tokens too.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.statistics.stats import gather

    page_path = reading.html_path(html)
    if not model and (template or learn or max_length):
        raise UsageError(
            "--template, --learn and --max-length are about tokens", hint="give --model too"
        )
    files = reading.RowFiles(data, format_name, columns)
    tokenizer = _tokenizer(model, template, offline) if model else None
    with Progress() as progress:

        def on_bytes(done: int) -> None:
            progress.update("read", done, max(files.bytes, 1), "bytes")

        stats = gather(
            files.splits(on_bytes),
            tokenizer=tokenizer,
            learn=learn or "all",
            max_length_tokens=max_length,
        )
    if stats is None:
        raise DataError(
            "holds no row that can be read", where=files.name, hint="see mlx-itune data check"
        )
    if page_path:
        from mlx_itune.dataset.statistics.stats_page import stats_page
        from mlx_itune.kit.files import write_durably

        write_durably(page_path, stats_page(stats, data=files.name).encode())
    if as_json:
        report.emit({"data": [str(path) for path in data], "html": html, **report.plain(stats)})
        return
    _tell(stats)
    if page_path:
        print(f"\nplots: {one_line(str(page_path))}")


def _tokenizer(model: str, template: str | None, offline: bool) -> ChatTokenizer:
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.model.loading.base import resolve, vet

    path = resolve(model, offline=offline)
    vet(path)
    return load_tokenizer(path, template=template or "auto")


def _tell(stats: Stats) -> None:
    from mlx_itune.cli import report

    out = report.console()
    facts = [("rows", f"{stats.rows:,}")]
    facts += [(name, f"{split.rows:,} rows") for name, split in stats.splits.items()]
    if stats.rejected:
        facts.append(("broken rows", f"{stats.rejected:,} (left out here)"))
    report.pairs([(one_line(name), value) for name, value in [*facts, *_token_facts(stats)]])
    refused = stats.tokens.refused if stats.tokens else ()
    for fault in [*stats.faults[:_FAULTS_SHOWN], *refused[:_FAULTS_SHOWN]]:
        print(f"  {one_line(fault)}")
    lengths = (
        [_safe(name), f"{found.count:,}", f"{found.mean:,.1f}"]
        + [f"{getattr(found, column):,}" for column in _COLUMNS]
        for name, found in _lengths(stats)
    )
    out.print(report.table(["", "count", "mean", *_COLUMNS], lengths))
    if stats.tokens:
        _tell_limits(stats)
    for title, ranking in (("source", stats.sources), ("task", stats.tasks)):
        _tell_groups(title, ranking, stats)
    scripts = list(stats.scripts.items())
    _tell_counts("writing system", scripts[:_NAMES_SHOWN], stats.rows)
    if stats.system.rows:
        prompts = [(item.name, item.amounts[0]) for item in stats.system.prompts.top]
        _tell_counts("system prompt", [(_short(name), n) for name, n in prompts[:5]], stats.rows)
    others = _other_facts(stats)
    if others:
        report.pairs(others)


def _lengths(stats: Stats) -> Iterator[tuple[str, Distribution]]:
    if stats.tokens:
        yield "tokens per row", stats.tokens.per_row
        if stats.tokens.examples != stats.tokens.per_row.count:
            yield "tokens per example", stats.tokens.per_example
        yield "learned tokens per row", stats.tokens.supervised_per_row
        yield "learned % of a row", stats.tokens.share_percent
    yield "turns per conversation", stats.turns
    for role, found in stats.roles.items():
        yield f"characters, {role}", found.characters
        yield f"words, {role}", found.words


def _token_facts(stats: Stats) -> Iterator[tuple[str, str]]:
    from mlx_itune.cli import report

    tokens = stats.tokens
    if not tokens:
        return
    yield "tokens", f"{tokens.total:,} (template {tokens.template})"
    share = report.percent(tokens.supervised_share)
    yield "learned tokens", f"{tokens.supervised:,} ({share})"
    for name, count in (
        ("control text", tokens.control_text_rows),
        ("nothing to learn", tokens.nothing_to_learn_rows),
        ("refused by template", tokens.refused_rows),
    ):
        if count:
            yield name, f"{count:,} rows"


def _tell_limits(stats: Stats) -> None:
    from mlx_itune.cli import report

    tokens = stats.tokens
    assert tokens is not None
    over = {length: rows for length, rows in tokens.over.items() if rows}
    if tokens.limit:
        over[str(tokens.limit.tokens)] = tokens.limit.rows_over
    rows = [
        (f"over {int(length):,} tokens", count)
        for length, count in sorted(over.items(), key=lambda item: int(item[0]))
    ]
    _tell_counts("length", rows, tokens.per_row.count)
    shown = "  ".join(f"{size}: {report.percent(share)}" for size, share in tokens.padding.items())
    print(f"padding in random batches of  {shown}\n")


def _tell_groups(title: str, ranking: Ranking, stats: Stats) -> None:
    from mlx_itune.cli import report
    from mlx_itune.dataset.statistics.stats import NO_TAG

    if [item.name for item in ranking.top] == [NO_TAG]:
        return
    tokens = stats.tokens
    shown = ranking.top[:_NAMES_SHOWN]
    entries = [(item.name, item.amounts) for item in shown]
    left = [stats.rows, 0, tokens.total if tokens else 0, tokens.supervised if tokens else 0]
    rest = [total - sum(item.amounts[n] for item in shown) for n, total in enumerate(left)]
    if rest[0]:
        entries.append(("all others", tuple(rest)))
    rows = []
    for name, amounts in entries:
        told = [_short(name), f"{amounts[0]:,}", report.percent(amounts[0] / stats.rows)]
        if tokens:
            told += [
                report.percent(amounts[2] / tokens.total),
                report.percent(amounts[3] / tokens.supervised),
            ]
        rows.append(told)
    extra = ["of tokens", "of learned tokens"] if tokens else []
    report.console().print(report.table([title, "rows", "of rows", *extra], rows))


def _tell_counts(title: str, counts: list[tuple[str, int]], total: int) -> None:
    from mlx_itune.cli import report

    if counts:
        rows = (
            [_safe(name), f"{count:,}", report.percent(count / total)] for name, count in counts
        )
        report.console().print(report.table([title, "rows", "of rows"], rows))


def _other_facts(stats: Stats) -> list[tuple[str, str]]:
    facts = []
    if stats.system.rows:
        prompts = stats.system.prompts
        about = "" if prompts.exact else "about "
        facts.append(
            ("system prompts", f"{about}{prompts.distinct:,} texts in {stats.system.rows:,} rows")
        )
    if stats.tools.rows_offering or stats.tools.calls:
        tools = stats.tools
        facts.append(
            (
                "tools",
                f"offered in {tools.rows_offering:,} rows, {tools.calls:,} calls in "
                f"{tools.rows_calling:,} rows, {tools.functions.distinct:,} functions",
            )
        )
    if stats.weights.turns:
        values = ", ".join(f"{name}: {turns:,}" for name, turns in stats.weights.values.items())
        facts.append(("turn weights", f"{stats.weights.turns:,} assistant turns ({values})"))
    for name, ranking in stats.tags.items():
        about = "" if ranking.exact else "about "
        facts.append((f"field {one_line(name)}", f"{about}{ranking.distinct:,} different values"))
    return facts


def _short(name: str, most: int = 48) -> str:
    return _safe(name if len(name) <= most else f"{name[: most - 1]}…")


def _safe(text: str) -> str:
    """One terminal-safe line that rich does not read as its own markup."""
    from rich.markup import escape

    return escape(one_line(text))
