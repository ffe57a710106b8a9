"""``data review``, ``split``, ``diff``, ``versions``: what a person decides of rows, and what came
of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, console, pairs, table
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.kit.errors import DataError, UsageError, one_line
from mlx_itune.kit.settings import table_of
from mlx_itune.kit.wording import count, number, percent

if TYPE_CHECKING:
    from mlx_itune.dataset.differences import Diff, Version
    from mlx_itune.dataset.drafts.records import Draft
    from mlx_itune.dataset.drafts.review import Review

_KEYS = {"a": "accept", "r": "reject"}
_HELP = "[a]ccept  [e]dit  [r]eject  [s]kip  [b]ack  [q]uit"
_MOST_CHARACTERS = 1500


@options.command("data review")
@options.flags(
    "drafts reviewer sample-of-drafts seed-of-sample decide estimate accept-rest new-folder"
)
def command(drafts: Path, by: str | None, out: Path | None, as_json: bool, **asked: Any) -> Result:
    """Decide which drafts of `data grow` a model may learn; --out writes those as rows.

    On a terminal each pending draft is shown beside its passage, the most doubtful first, and one
    key decides; every decision is logged at once, with time and name, so Ctrl-C loses nothing. Of
    thousands, review a --sample, ask for an --estimate of the rest, and --accept-rest of them.
    """
    import sys

    from mlx_itune.dataset.drafts.records import Choice
    from mlx_itune.dataset.drafts.review import Review

    review = Review(drafts, by)
    for text in asked["decide"]:
        id, _, choice = text.partition("=")
        if choice not in get_args(Choice) or choice == "edit":
            raise UsageError(f"--decide {text}: ID=accept or ID=reject is needed")
        review.decide(id, choice, sample=asked["sample"] is not None)
    estimate = None
    if asked["estimate"] is not None:
        estimate = review.estimate(asked["estimate"])
    if asked["accept_rest"] is not None:
        estimate = review.accept_rest(asked["accept_rest"])
    said = asked["decide"] or estimate or out
    if not said and not as_json and sys.stdin.isatty():
        _ask(review, review.pending(asked["sample"], asked["seed"]), asked["sample"] is not None)
    if out is not None:
        review.accepted_to(out)
    found = {
        **vars(review.state()),
        "agreement": review.agreement(),
        "estimate": estimate,
        "out": str(out) if out else None,
    }
    return Result(found, _lines(found, drafts))


def _lines(found: dict[str, Any], drafts: Path) -> Iterator[str]:
    names = ("drafts", "accepted", "edited", "rejected", "pending")
    yield from pairs((name, f"{found[name]:,}") for name in names)
    for each in found["agreement"]:
        both = " and ".join(map(one_line, each.operators))
        kappa = f", Cohen's kappa {number(each.kappa, 2)}" if each.kappa is not None else ""
        told = f"{both} agree on {percent(each.share)} of {count(each.drafts, 'draft')}{kappa}"
        yield told
    if found["estimate"] is not None:
        pending = count(found["estimate"].pending, "pending draft")
        yield f"{pending} of at most {found['estimate'].most_doubt:g} doubt: {found['estimate']}"
    if found["out"]:
        rows = found["accepted"] + found["edited"]
        yield f"{found['out']}: {count(rows, 'row')}"
    elif found["accepted"] or found["edited"]:
        yield f"next: mlx-itune data review {shlex.quote(str(drafts))} --out data"


def _ask(review: Review, waiting: list[Draft], sample: bool) -> None:
    at = 0
    while at < len(waiting):
        _show(waiting[at], review.passage(waiting[at]), f"{at + 1} of {len(waiting)}")
        key = click.getchar().lower()
        if key in ("q", "\x03", "\x04", "\x1b"):
            return
        if key in _KEYS:
            review.decide(waiting[at].id, _KEYS[key], sample=sample)  # type: ignore[arg-type]
        elif key == "e":
            if (messages := _edited(waiting[at])) is None:
                continue
            review.decide(waiting[at].id, "edit", messages=messages, sample=sample)
        elif key == "b":
            at = max(0, at - 1)
            continue
        elif key not in "s ":
            continue
        at += 1


def _show(draft: Draft, passage: str | None, place: str) -> None:
    from rich.panel import Panel
    from rich.text import Text

    out = console()
    scores = ", ".join(f"{name} {number(value, 2)}" for name, value in draft.scores.items())
    out.print(Text(f"\n{draft.id}  {place}  {draft.recipe}  doubt {draft.doubt:.2f}  {scores}"))
    if passage:
        out.print(Panel(Text(passage[:_MOST_CHARACTERS]), title=draft.source, title_align="left"))
    for message in draft.messages:
        learned = message.get("role") == "assistant"
        said = Text(f"{message.get('role')}: {message.get('content')}")
        out.print(said, style="green" if learned else "")
    out.print(Text(_HELP), style="dim")


def _edited(draft: Draft) -> list[dict[str, Any]] | None:
    """The messages as an editor leaves them; None where nothing was saved, or no row came of it."""
    from mlx_itune.dataset.drafts.records import conversation

    text = click.edit(json.dumps(draft.messages, ensure_ascii=False, indent=2), extension=".json")
    if text is None:
        return None
    try:
        messages = json.loads(text)
        if not isinstance(messages, list):
            raise DataError("a list of messages is needed")
        conversation(messages, draft.id)
    except (ValueError, DataError) as error:
        click.echo(one_line(f"not saved: {error}"), err=True)
        click.pause()
        return None
    return messages


@options.command("data split")
@options.flags("sources out-directory")
@options.together(
    *(options.flag(table_of(ImportPlan)[n]) for n in ("split", "group_by", "stratify", "seed"))
)
def split(sources: tuple[Path, ...], out: Path, **settings: Any) -> Result:
    """Rows into train, valid and test by what they say: equal rows are on one side, whatever their
    order. The same as `data import --split`; 0.8/0.1/0.1 unless said."""
    from mlx_itune.api.rows import import_rows
    from mlx_itune.cli.data.folders import imported
    from mlx_itune.cli.progress import Progress

    settings["split"] = settings["split"] or "0.8/0.1/0.1"
    with Progress() as progress:
        made = import_rows([*map(str, sources)], out, observe=progress.bytes, **settings)
    return Result(made, imported(made), 0 if made.written else DataError.exit_code)


@options.command("data diff")
@options.flags("data-sets rows-listed")
def differences(data_sets: tuple[Path, Path], rows: int) -> Result:
    """Rows that were added, removed, or have another text, from data set A to B.

    Rows are the same by what they say, wherever they stand; an edited row has the origin, or the
    question, that it had.
    """
    from mlx_itune.dataset.differences import diff

    found = diff(*data_sets, listed=rows)
    return Result(found, _differences(found))


def _differences(found: Diff) -> Iterator[str]:
    kinds = ("same", "moved", "edited", "removed", "added")
    for name, rows in ((found.a, found.rows_a), (found.b, found.rows_b)):
        yield one_line(f"{name}: {count(rows, 'row')}")
    yield from pairs((kind, f"{getattr(found, kind):,}") for kind in kinds)
    if found.faults:
        yield f"{count(found.faults, 'broken row')} not compared: `mlx-itune data check` lists them"
    for each in found.changes:
        place = " -> ".join(place for place in (each.before, each.after) if place)
        yield one_line(f"{each.kind:<8} {place}: {_short(each.asked)}")
        for sign, text in (("-", each.was), ("+", each.now)):
            if text is not None and each.kind == "edited":
                yield one_line(f"  {sign} {_short(text)}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else f"{text[:87]}..."


@options.command("data versions")
@options.flags("folders")
def history(folders: tuple[Path, ...]) -> Result:
    """The steps that made data folders, as their records tell: what, when, by whom, from which."""
    from mlx_itune.dataset.differences import versions

    found = versions([*folders])
    return Result({"versions": found}, _versions(found))


def _versions(found: list[Version]) -> Iterator[Any]:
    yield table(
        ["version", "step", "made", "by", "of", "rows", "removed", "changed", "folder"],
        (
            [
                each.seal[:8],
                each.command,
                each.created[:16].replace("T", " "),
                one_line(each.operator),
                ", ".join(seal[:8] for seal in each.of) or one_line(", ".join(each.inputs)[:30]),
                f"{sum(each.rows.values()):,}",
                f"{each.removed:,}",
                f"{each.changed:,}",
                one_line(each.folder or ""),
            ]
            for each in found
        ),
    )
