"""``data clean``: chosen steps over a data set; every removal and change is listed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.kit.errors import UsageError, closest, one_line

if TYPE_CHECKING:
    from mlx_itune.dataset.cleaning.run import Cleaned
    from mlx_itune.dataset.cleaning.steps import StepOptions

_SOURCES_SHOWN = 10


@options.command(
    "clean", "mlx-itune data clean data --out cleaned --preset default --pii email,phone"
)
@click.argument("sources", nargs=-1, required=True, type=options.ANY_PATH, metavar="SRC...")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option("--steps", metavar="S1,S2,...", help="Steps, run in this order.")
@click.option(
    "--preset",
    type=click.Choice(["default", "sharegpt", "alpaca"]),
    help="A list of steps made for a kind of data (default: default, unless --steps).",
)
@reading.forced_format
@click.option(
    "--lints", type=options.ANY_PATH, metavar="FILE", help="Your own list of lints (data check)."
)
@click.option(
    "--drop", "codes", metavar="CODE,...", help="Lints whose rows the step 'refusals' drops."
)
@click.option(
    "--pii",
    metavar="KIND,...",
    help="Redact personal data of these kinds, or 'all'; adds the step 'pii'.",
)
@click.option("--unify-system", is_flag=True, help="Add the step 'unify-system'.")
@click.option(
    "--language",
    metavar="SCRIPT,...",
    help="Keep rows mostly in these scripts, such as latin or cjk; adds the step 'language'.",
)
@click.option(
    "--script-share",
    type=click.FloatRange(0, 1),
    default=0.6,
    show_default=True,
    help="Least share of the letters for --language.",
)
@click.option(
    "--min-chars",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="For the step 'too-short'.",
)
@click.option(
    "--similarity",
    type=click.FloatRange(0.5, 1),
    default=0.8,
    show_default=True,
    help="For the step 'near-duplicates': least Jaccard similarity of the words.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Leave broken rows out and list them, instead of writing nothing.",
)
@click.option("--operator", metavar="WHO", help="Name for the ledger; yours unless given.")
def command(
    sources: tuple[Path, ...],
    out: Path,
    steps: str | None,
    preset: str | None,
    format_name: str | None,
    columns: tuple[str, ...],
    lints: Path | None,
    codes: str | None,
    pii: str | None,
    unify_system: bool,
    language: str | None,
    script_share: float,
    min_chars: int,
    similarity: float,
    keep_going: bool,
    operator: str | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Clean a data set; rows that were removed or changed are listed with the reason.

    SRC is a file or folder of rows of any format; a data folder keeps its splits. The new folder
    holds removed.jsonl, changed.jsonl and a ledger of what was done.

    \b
    Steps:
      html-to-text      answers saved as HTML become Markdown
      copy-code         'Copy code' buttons and page counts go
      whitespace        Unicode NFC, one kind of space and line end
      trim-leading      what comes before the first question goes
      trim-trailing     what comes after the last answer goes
      merge-turns       neighbouring turns of one role are joined
      drop-irregular    rows whose turns do not alternate go
      empty-answers     rows with an empty turn go
      too-short         rows under --min-chars characters go
      language          rows in other scripts than --language go
      refusals          rows with refusals, disclaimers, vendor names, error replies (--drop) go
      control-text      control strings in contents are broken up with a space
      drop-control-text rows with a control string in a content go
      pii               personal data become placeholders (--pii)
      unify-system      one spelling of each system prompt
      exact-duplicates, pair-duplicates (equal first question and answer), near-duplicates
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.checking import load_lints
    from mlx_itune.dataset.cleaning.run import clean
    from mlx_itune.dataset.cleaning.steps import PRESET_CODES, StepOptions

    if steps is not None and preset is not None:
        raise UsageError("give --steps or --preset, not both")
    chosen = preset if steps is None else None
    names = _names(steps, chosen or "default", pii is not None, unify_system, language is not None)
    loaded = load_lints(lints)
    dropped = _listed("--drop", codes)
    if dropped is None and chosen in PRESET_CODES:
        there = {lint.code for lint in loaded}
        marked = [lint.code for lint in loaded if lint.drop]
        dropped = [*marked, *(code for code in PRESET_CODES[chosen] if code in there)]
    given = StepOptions(
        lints=loaded,
        codes=dropped,
        least_chars=min_chars,
        scripts=_listed("--language", language) or (),
        script_share=script_share,
        pii=_kinds(pii),
        threshold=similarity,
    )
    rows = reading.RowFiles(sources, format_name, columns)
    with Progress() as progress:
        done = 0

        def on_bytes(more: int) -> None:
            nonlocal done
            done += more
            progress.update("clean", done, max(rows.bytes, 1), "bytes")

        cleaned = clean(
            sources,
            out,
            names,
            given,
            format=format_name,
            columns=reading._pairs(columns) or None,
            keep_going=keep_going,
            settings=_settings(names, given, lints),
            operator=operator,
            on_bytes=on_bytes,
        )
    if as_json:
        report.emit(_as_json(cleaned, out))
    else:
        _tell(cleaned, out)


def _names(
    steps: str | None, preset: str, pii: bool, unify_system: bool, language: bool
) -> list[str]:
    from mlx_itune.dataset.cleaning.steps import PRESETS

    names = list(PRESETS[preset]) if steps is None else _listed("--steps", steps) or []
    first_whole = next((n for n, name in enumerate(names) if name.endswith("-duplicates")), None)
    for name, asked in (("unify-system", unify_system), ("language", language), ("pii", pii)):
        if asked and name not in names:
            # Before the duplicates, which these steps bring to light.
            names.insert(len(names) if first_whole is None else first_whole, name)
            first_whole = None if first_whole is None else first_whole + 1
    return names


def _listed(flag: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{flag} {text!r} has an empty name")
    return parts


def _kinds(text: str | None) -> list[str] | None:
    from mlx_itune.dataset.cleaning.pii import KINDS

    if text is None or text.strip() == "all":
        return None
    kinds = _listed("--pii", text) or []
    for kind in kinds:
        if kind not in KINDS:
            near = closest(kind, KINDS)
            hint = f"did you mean {near}?" if near else "all, or some of " + ", ".join(KINDS)
            raise UsageError(f"there is no kind of personal data {kind!r}", hint=hint)
    return kinds


def _settings(names: list[str], given: StepOptions, lints: Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"steps": names}
    if lints is not None:
        settings["lints"] = lints.name
    if "refusals" in names:
        settings["drop"] = given.codes or [lint.code for lint in given.lints if lint.drop]
    if "too-short" in names:
        settings["min-chars"] = given.least_chars
    if "language" in names:
        settings |= {"language": list(given.scripts), "script-share": given.script_share}
    if "pii" in names:
        settings["pii"] = list(given.pii) if given.pii else "all"
    if "near-duplicates" in names:
        settings["similarity"] = given.threshold
    return settings


def _as_json(cleaned: Cleaned, out: Path) -> dict[str, Any]:
    return {
        "out": out,
        "rows": cleaned.rows,
        "kept": cleaned.kept,
        "changed": cleaned.changed,
        "removed": cleaned.removed,
        "rejected": cleaned.rejected,
        "steps": {
            name: {
                "in": count.rows_in,
                "kept": count.kept,
                "changed": count.changed,
                "removed": count.removed,
            }
            for name, count in cleaned.steps.items()
        },
        "splits": cleaned.splits,
        "duplicate_sources": [
            {"later": later, "earlier": earlier, "rows": count}
            for (later, earlier), count in cleaned.duplicate_sources.most_common()
        ],
        "faults": cleaned.faults,
        "ledger": cleaned.ledger,
    }


def _tell(cleaned: Cleaned, out: Path) -> None:
    from mlx_itune.cli import report

    for fault in cleaned.faults:
        print(one_line(str(fault)))
    lines = (
        [name, f"{n.rows_in:,}", f"{n.changed:,}", f"{n.removed:,}", f"{n.kept:,}"]
        for name, n in cleaned.steps.items()
    )
    table = report.table(["step", "rows in", "changed", "removed", "kept"], lines)
    report.console().print(table)
    pairs = cleaned.duplicate_sources.most_common(_SOURCES_SHOWN)
    if any(later != earlier for (later, earlier), _ in pairs):
        for (later, earlier), count in pairs:
            print(one_line(f"repeated: {count:,} rows of {later} in {earlier}"))
    print(
        f"{cleaned.rows:,} rows, {cleaned.kept:,} kept ({cleaned.changed:,} changed), "
        f"{cleaned.removed:,} removed, {cleaned.rejected:,} rejected"
    )
    splits = ", ".join(f"{count:,} {split}" for split, count in cleaned.splits.items())
    listed = [f"{kind}.jsonl" for kind in ("removed", "changed") if getattr(cleaned, kind)]
    print(f"{out}: {splits}" + (f"; see its {' and '.join(listed)}" if listed else ""))
