"""``runs``: what was trained; list, show, compare, note, open, verify, prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_itune.cli import COMMANDS, LazyGroup, options
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit.errors import StorageError, UsageError, one_line
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.wording import count, listing, number, size

_INCIDENTS, _ANSWERS, _CURVE_ROWS, _PROMPT = 10, 5, 12, 200

command = LazyGroup("runs", within="runs", help=COMMANDS["runs"]["about"])


@options.command("runs list")
@options.flags("runs")
def list_runs(runs: Path) -> Result:
    """Every run: running, finished, stopped (by a signal), killed, failed or diverged."""
    from mlx_itune.api.training import runs as standings

    found = standings(runs)
    return Result({"runs": found}, _listed(found, runs))


def _listed(found: Sequence[Any], runs: Path) -> Iterator[Any]:
    if not found:
        yield f"no runs in {runs}"
        return
    rows = (
        [
            f"{Path(run.run).name}{f' ({run.name})' if run.name else ''}",
            run.state,
            f"{run.step}/{run.steps}" if run.steps else f"{run.step}",
            number(run.valid_loss, 3),
            number(run.best_valid_loss, 3),
            size(run.bytes),
        ]
        for run in found
    )
    # Six columns are what 80 characters hold; the train loss is in `runs show`.
    yield table(["run", "state", "step", "valid", "best", "size"], rows)
    for run in found:
        if run.resume:
            yield f"{run.state}, continue with:\n  {run.resume}"


@options.command("runs show")
@options.flags("run runs")
def show(run: str, runs: Path) -> Result:
    """Settings, numbers, checkpoints, incidents of RUN (a folder, `last`, or an id's beginning)."""
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import find

    found = catalogue.details(find(run, runs))
    return Result(found, _shown(found))


def _shown(found: dict[str, Any]) -> Iterator[str]:
    holder = f" ({found['held_by']})" if found["held_by"] else ""
    lines = [
        ("run", found["run"]),
        ("state", found["state"] + holder),
        ("steps", f"{found['step']:,} of {found['steps']:,}" if found["steps"] else found["step"]),
        ("train loss", number(found["train_loss"])),
        ("valid loss", number(found["valid_loss"])),
        ("best", number(found["best_valid_loss"])),
        ("size", size(found["bytes"])),
    ]
    lines.append(("verdict", found["verdict"]))
    said = (("name", found["name"]), ("tags", listing(found["tags"])), ("note", found["note"]))
    lines[1:1] = [(name, value) for name, value in said if value]
    if found["result"]:
        lines.insert(2, ("adapter", found["result"].adapter))
    yield from pairs(lines)
    yield "\nsettings"
    yield from pairs((f"  {name}", value) for name, value in found["config"].items())
    if found["checkpoint_list"]:
        yield "\ncheckpoints"
    for seal in found["checkpoint_list"]:
        yield f"  {seal.path}  {size(seal.bytes)}{'  best' if seal.best else ''}"
    incidents = found["incident_list"]
    if incidents:
        yield "\nupdates that were not made"
    for incident in incidents[:_INCIDENTS]:
        norm = f"gradient norm {incident.gradient_norm}"
        rows = listing(incident.suspects or incident.rows)
        yield f"  step {incident.step}: loss {incident.loss}, {norm}; {rows}"
    if len(incidents) > _INCIDENTS:
        yield f"  and {len(incidents) - _INCIDENTS} more in {found['run']}/incidents.jsonl"
    if found["resume"]:
        yield f"\ncontinue with: {found['resume']}"


@options.command("runs compare")
@options.flags("runs-to-compare html-of-runs runs")
def compare(run: tuple[str, ...], html: Path | None, runs: Path) -> Result:
    """Settings that differ, validation losses by step and answers of runs, side by side."""
    from mlx_itune.kit.files import write_new
    from mlx_itune.training.run import comparison
    from mlx_itune.training.run.run import find

    if len(run) < 2:
        raise UsageError("name two runs or more", hint=f"mlx-itune runs list --runs {runs}")
    found = comparison.compared([find(each, runs) for each in run])
    if html:
        write_new(html, comparison.page_of(found).encode("utf-8", errors="backslashreplace"))
    return Result({**plain(found), "html": html}, _compared(found, html))


def _compared(found: Any, html: Path | None) -> Iterator[Any]:
    from mlx_itune.training.run.comparison import labels, told

    yield from (f"note: {note}" for note in found.notes)
    names, sides = labels(found), found.runs
    named = zip(names, sides, strict=True)
    yield from pairs((name, f"{side.run} ({side.state})") for name, side in named)
    rows = [[n.replace("_", "-"), *(told(s.settings[n]) for s in sides)] for n in found.differ]
    for name in ("train_loss", "valid_loss", "best_valid_loss"):
        rows.append([name.replace("_", " "), *(number(getattr(side, name)) for side in sides)])
    steps = sorted({step for side in sides for step in side.validations})
    every = -(-len(steps) // _CURVE_ROWS) or 1
    for step in steps[::-1][::every][::-1]:
        losses = (number(side.validations.get(step)) for side in sides)
        rows.append([f"valid, step {step:,}", *losses])
    yield table(["", *names], rows)
    for each in found.answers[:_ANSWERS]:
        yield f"\n{each['row']}: {one_line(str(each['prompt']))[-_PROMPT:]}"
        texts = [*each["after"], each["reference"]]
        said = (one_line(str(text)) if text is not None else "-" for text in texts)
        yield from pairs(zip([*names, "reference"], said, strict=True))
    if html:
        yield f"page: {html}"


@options.command("runs best")
@options.flags("tag runs")
def best(tag: str | None, runs: Path) -> Result:
    """The finished run of the lowest validation loss."""
    from mlx_itune.training.run import catalogue, comparison
    from mlx_itune.training.run.run import all_in

    folder = comparison.best(all_in(runs), tag)
    if folder is None:
        tagged = f" with the tag {tag!r}" if tag else ""
        raise UsageError(f"no finished run{tagged} has a validation loss", where=str(runs))
    found = catalogue.details(folder)
    return Result(found, _shown(found))


@options.command("runs note")
@options.flags("run name-of-run tags-of-run note-of-run runs")
def note(run: str, name: str | None, tags: tuple[str, ...], note: str | None, runs: Path) -> Result:
    """Call RUN something, tag it, say something of it; what is not given stays."""
    from mlx_itune.training.run.run import Note, find, keep_note, note_of

    folder = find(run, runs)
    kept = note_of(folder)
    kept = Note(name or kept.name, tags or kept.tags, note or kept.note)
    keep_note(folder, kept, runs)
    return Result({"run": folder, **vars(kept)}, [f"noted in {folder}/note.json"])


@options.command("runs open")
@options.flags("run-or-last runs")
def open_report(run: str, runs: Path) -> Result:
    """Make the report of RUN (the last one unless given) anew and open it in the browser."""
    import webbrowser

    from mlx_itune.training.run import report
    from mlx_itune.training.run.run import find

    folder = find(run, runs)
    page = report.write(folder)
    opened = webbrowser.open(page.resolve().as_uri())
    lines = [str(page)] if opened else [str(page), "no browser was found: open it by hand"]
    return Result({"run": folder, "report": page, "opened": opened}, lines)


def _folders(names: Sequence[str], runs: Path) -> Sequence[Path]:
    from mlx_itune.training.run.run import all_in, find

    return [find(name, runs) for name in names] or all_in(runs)


@options.command("runs verify")
@options.flags("run-or-all runs")
def verify(run: tuple[str, ...], runs: Path) -> Result:
    """Compare every file of every checkpoint with its manifest; all runs unless RUN names some.

    Exit code 5 if any differs.
    """
    from mlx_itune.training.run import catalogue

    folders = _folders(run, runs)
    seals = [seal for folder in folders for seal in catalogue.seals(folder)]
    broken = [seal for seal in seals if seal.fault]
    lines = [f"{'broken' if seal.fault else 'ok':<7} {seal.path}" for seal in seals]
    lines += [f"broken: {seal.fault}" for seal in broken]
    data = {"checkpoints": seals, "broken": len(broken)}
    if broken:
        lines.append("resume goes on from the last undamaged checkpoint")
        return Result(data, lines, exit_code=StorageError.exit_code)
    held = f"{count(len(seals), 'checkpoint')} of {count(len(folders), 'run')}"
    return Result(data, [*lines, f"{held}: all as sealed"])


@options.command("runs prune")
@options.flags("run-or-all runs keep keep-runs unfinished yes")
def prune(run: tuple[str, ...], runs: Path, yes: bool, **which: Any) -> Result:
    """Remove checkpoints that are neither among the newest nor the best; all runs, or each RUN.

    A run that is training is left alone, and adapters are never touched.
    """
    from mlx_itune.training.run import catalogue

    going = catalogue.prune(_folders(run, runs), really=yes, **which)
    total = sum(item.bytes for item in going)
    lines = [f"{size(item.bytes):>12}  {item.path}  ({item.why})" for item in going]
    done = f"removed: {size(total)}" if yes else f"would free {size(total)}; --yes removes them"
    lines.append(done if going else "nothing to remove")
    return Result({"removed": yes, "bytes": total, "paths": going}, lines)
