"""``data import``: any format in, a data folder out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import DataError, UsageError, closest, one_line

if TYPE_CHECKING:
    from mlx_itune.dataset.importing.plan import Outcome


@options.command(
    "import", "mlx-itune data import alpaca_data.json notes.csv --out data --split 0.9/0.05/0.05"
)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option("--format", "format_name", metavar="F", help="Read every row as this format.")
@click.option("--kind", metavar="K", help="Read every file as jsonl, json, csv, tsv, text ...")
@click.option(
    "--map",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    help="Which column holds a field, such as instruction=question; may be repeated.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Keep rows with this tag (or key!=value); repeated: all of them.",
)
@click.option("--sample", type=click.IntRange(1), metavar="N", help="N rows, chosen by content.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--split",
    "shares",
    metavar="A/B/C",
    help="Shares of train/valid/test, such as 0.9/0.05/0.05. Without it rows keep the split their "
    "file is named after; all others go to train.",
)
@click.option(
    "--group-by",
    metavar="TAG",
    help="Keep rows with the same value on one side of the split; 'first-turn': the same question.",
)
@click.option(
    "--stratify",
    metavar="TAG",
    help="Give each source, task or other value rows in every split, and report its shares.",
)
@click.option("--cap", type=click.IntRange(1), metavar="N", help="At most N rows of each source.")
@click.option(
    "--weights", metavar="NAME=W,...", help="Shares of the sources, such as flan=0.4,cot=0.05."
)
@click.option(
    "--licence",
    "--license",
    "licences",
    multiple=True,
    metavar="[NAME=]TEXT",
    help="Licence of the sources, or of one.",
)
@click.option("--name", help="What to call the source, if not after its file.")
@click.option(
    "--strict/--drop-faults",
    default=False,
    help="Write nothing if any row is broken, or leave such rows out (default).",
)
@click.option("--operator", metavar="WHO", help="Name for the ledger; yours unless given.")
@click.pass_context
def command(
    ctx: click.Context,
    sources: tuple[str, ...],
    out: Path,
    format_name: str | None,
    kind: str | None,
    columns: tuple[str, ...],
    where: tuple[str, ...],
    sample: int | None,
    seed: int,
    shares: str | None,
    group_by: str | None,
    stratify: str | None,
    cap: int | None,
    weights: str | None,
    licences: tuple[str, ...],
    name: str | None,
    strict: bool,
    operator: str | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Any instruction file in; a folder of train, valid and test rows out.

    SRC is a file (JSON, JSON Lines, CSV, TSV, Parquet, XLSX, text), a folder of them, or a Hub
    data set: org/name, org/name:split, org/name@revision. Broken rows are listed and left out;
    the folder's rejected.jsonl holds them all.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.importing.plan import Plan
    from mlx_itune.dataset.importing.run import run
    from mlx_itune.dataset.importing.select import parse_where
    from mlx_itune.dataset.importing.sourcing import gather, known_licences, named
    from mlx_itune.dataset.importing.splitting import parse_shares

    if (group_by or stratify) and not shares:
        raise UsageError("--group-by and --stratify choose sides of a --split; give one")
    if weights and cap:
        raise UsageError("give --weights or --cap, not both")
    gathered = gather(sources, offline=offline)
    inputs = named(gathered.inputs, name)
    plan = Plan(
        inputs,
        format=_format(format_name),
        kind=kind,
        columns=_pairs("--map", columns),
        where=parse_where(where),
        sample=sample,
        seed=seed,
        shares=parse_shares(shares) if shares else None,
        group_by=group_by,
        stratify=stratify,
        cap=cap,
        weights=_weights(weights),
        strict=strict,
    )
    known = known_licences(inputs, gathered.about)
    stated = _licences(known, licences, ask=sys.stdin.isatty() and not as_json)
    settings = {
        "format": format_name,
        "kind": kind,
        "map": columns,
        "where": where,
        "sample": sample,
        "seed": seed,
        "split": shares,
        "group-by": group_by,
        "stratify": stratify,
        "cap": cap,
        "weights": weights,
        "strict": strict,
    }
    settings = {key: value for key, value in settings.items() if value not in (None, (), False)}
    with Progress() as progress:

        def on_bytes(stage: str, done: int, total: int) -> None:
            progress.update(stage, done, max(total, 1), "bytes")

        outcome = run(
            plan,
            out,
            settings=settings,
            about=gathered.about,
            licences=stated,
            operator=operator,
            on_bytes=on_bytes,
        )
    if as_json:
        report.emit(_as_json(outcome, out))
    else:
        _tell(outcome, out)
    if not outcome.written:
        ctx.exit(DataError.exit_code)


def _format(name: str | None) -> str | None:
    from mlx_itune.dataset.formats import FORMATS

    if name is None or name in FORMATS:
        return name
    near = closest(name, FORMATS)
    hint = f"did you mean {near}?" if near else "one of " + ", ".join(FORMATS)
    raise UsageError(f"there is no format {name!r}", hint=hint)


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"{flag} {text!r} is not NAME=VALUE")
        if key in pairs:
            raise UsageError(f"{flag} names {key!r} twice")
        pairs[key] = value
    return pairs


def _weights(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    weights = {}
    for name, value in _pairs("--weights", text.split(",")).items():
        try:
            weights[name] = float(value)
        except ValueError:
            raise UsageError(f"the weight of {name!r} is {value!r}, not a number") from None
    return weights


def _licences(
    known: Mapping[str, str | None], given: Sequence[str], *, ask: bool
) -> dict[str, str]:
    """Licences by source: as given, else as `known`, else as typed in where someone can type."""
    for_all, licences = "", {}
    for text in given:
        name, equals, licence = (part.strip() for part in text.partition("="))
        if not equals:
            for_all = name
        elif name in known:
            licences[name] = licence
        else:
            near = closest(name, known)
            hint = f"did you mean {near}?" if near else "the sources are " + ", ".join(known)
            raise UsageError(f"--licence is given for {name!r}, which is no source", hint=hint)
    for name, found in known.items():
        licence = licences.get(name) or for_all or found or ""
        if not licence and ask:
            question = f"Licence of {name} (empty: not known)"
            licence = str(click.prompt(question, default="", show_default=False, err=True)).strip()
        licences[name] = licence
    return {name: licence for name, licence in licences.items() if licence}


def _as_json(outcome: Outcome, out: Path) -> Mapping[str, Any]:
    return {
        "out": out,
        "written": outcome.written,
        "rows": outcome.rows,
        "accepted": outcome.accepted,
        "rejected": outcome.rejected,
        "splits": outcome.splits,
        "left_out": outcome.left_out,
        "split": outcome.split,
        "mix": outcome.mix,
        "sources": outcome.sources,
        "faults": [*outcome.faults, *outcome.warnings],
        "notes": outcome.notes,
        "ledger": outcome.ledger,
    }


def _tell(outcome: Outcome, out: Path) -> None:
    from mlx_itune.cli import report

    for fault in (*outcome.warnings, *outcome.faults):
        print(one_line(str(fault)))
    if outcome.rejected > len(outcome.faults):
        print(f"... and {outcome.rejected - len(outcome.faults):,} more")
    print(
        f"{outcome.rows:,} rows, {outcome.accepted:,} accepted, {outcome.rejected:,} rejected"
        + "".join(f", {n:,} left out by --{why}" for why, n in outcome.left_out.items())
    )
    if not outcome.written:
        why = "--strict" if outcome.accepted else "no row could be read"
        print(f"nothing written: {why}")
        return
    names: dict[str, str | None] = {}
    for source in outcome.sources:
        names[source["name"]] = source.get("licence") or names.get(source["name"])
    for name, licence in names.items():
        unknown = f"not known (record it with --licence '{name}=...')"
        print(f"licence of {name}: {licence or unknown}")
    if outcome.mix:
        asked, came = outcome.mix["requested"], outcome.mix["achieved"]
        lines = ([name, report.percent(asked[name]), report.percent(came[name])] for name in asked)
        report.console().print(report.table(["source", "asked", "got"], lines))
    if outcome.split and outcome.split.strata:
        rows = (
            [value or "(none)", *(f"{counts.get(split, 0):,}" for split in outcome.splits)]
            for value, counts in outcome.split.strata.items()
        )
        report.console().print(report.table(["stratum", *outcome.splits], rows))
    for note in outcome.notes:
        print(f"note: {note}")
    print(f"{out}: " + ", ".join(f"{n:,} {name}" for name, n in outcome.splits.items()))
