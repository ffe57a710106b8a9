"""What a run was made of, as tables: data, model, adapter, engine, configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_itune.kit.page import Html, grid, section, table
from mlx_itune.training.report.story import Story

_LISTED = 20
_LIST_NAMES = {
    "split": "cut between exchanges",
    "truncated": "truncated",
    "dropped": "dropped, wholly or in part",
    "nothing_to_learn": "nothing to learn",
    "control_text": "text that spells a control token",
}
# What other sections tell already.
_TOLD = {"run", "report", "steps", "examples", "valid_examples", "sources", "base"}
_WORDS = {
    "tokens_kept": "tokens kept from an earlier run",
    "max_length_tokens": "longest row in tokens",
    "layers": "adapted layers",
    "exact_head": "output head on learned positions only",
    "trainable_parameters": "trainable parameters",
    "compute": "quantized layers are computed",
}
_HASH = re.compile("[0-9a-f]{40,}")
_LINE = re.compile(r"([A-Za-z_][\w-]*) = (.*)")


def data_facts(story: Story, origin: Mapping[str, Any]) -> Html:
    """Rows, tokens, what was cut, and the files they came from."""
    report = story.start.get("report")
    report = report if isinstance(report, Mapping) else {}
    rows = [
        [name, amount]
        for name, amount in (
            ("rows to train on", _count(report.get("rows"))),
            ("examples made of them", _count(report.get("examples"))),
            ("validation examples", _count(story.start.get("valid_examples"))),
            ("tokens", _count(report.get("tokens"))),
            ("learned tokens", _learned(report)),
            ("assistant turns", _count(report.get("turns"))),
            ("turns truncated", _count(report.get("turns_truncated"))),
            ("turns dropped", _count(report.get("turns_dropped"))),
        )
        if amount
    ]
    cut = [
        [name, f"{len(listed):,}", _names(listed)]
        for key, name in _LIST_NAMES.items()
        if isinstance(listed := report.get(key), list) and listed
    ]
    parts = [table(["all of it", ""], rows)] if rows else []
    sources = story.start.get("sources") or origin.get("data")
    if listed := list(_sources(sources)):
        parts.append(table(["file", "rows", "SHA-256"], listed, words={2}))
    more = [table(["rows with", "", "which"], cut, words={2})] if cut else []
    return section("Data", grid(*parts), *more) if parts or more else Html("")


def model_facts(story: Story, origin: Mapping[str, Any], adapter: Mapping[str, Any]) -> Html:
    """Base model, tokenizer, adapter, and the paths that the engine chose."""
    base = story.start.get("base") or origin.get("base")
    base = {"id": base} if isinstance(base, str) else base
    engine = {k: v for k, v in story.start.items() if k not in _TOLD}
    said = {"tokenizer": origin.get("tokenizer"), "learned turns": origin.get("mask")}
    found = [
        *fact_table("base model", base),
        *fact_table("adapter", adapter),
        *fact_table("how it was computed", engine),
        *fact_table("text", said),
        *fact_table("versions", origin.get("versions")),
    ]
    return section("Model, adapter and engine", grid(*found)) if found else Html("")


def fact_table(heading: str, facts: Any) -> list[Html]:
    """The names and values in a mapping, nested ones too, as one table; none for nothing."""
    if not isinstance(facts, Mapping):
        return []
    rows = [[name, value] for name, value in _flat(facts) if value]
    return [table([heading, ""], rows, words={1})] if rows else []


def settings_of(text: str) -> dict[str, str]:
    """The lines of config.toml as name -> value; a line that is no `name = value` names itself."""
    settings = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        found = _LINE.fullmatch(line)
        settings[found.group(1) if found else line] = _value(found.group(2)) if found else ""
    return settings


def config_table(settings: Mapping[str, str]) -> Html:
    """All settings, in columns side by side."""
    rows = [[name.replace("_", "-"), value] for name, value in settings.items()]
    half = -(-len(rows) // 2)
    columns = [part for part in (rows[:half], rows[half:]) if part]
    return grid(*(table(["setting", "value"], part, words={1}) for part in columns))


def _value(text: str) -> str:
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return without_folders(text[1:-1].replace("\\\\", "\\").replace('\\"', '"'))
    return text


def without_folders(text: str) -> str:
    """The last part of an absolute path, or of one through `..` or `~`; other text as it is."""
    local = re.match(r"(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\)", text)
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if local else text


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = before + _WORDS.get(str(key), str(key).replace("_", " "))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ") if before.count(",") < 3 else ()
        else:
            yield name, _told(value)


def _told(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1 << 60 else "a very large number"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return _names(value)
    text = without_folders(str(value))
    return f"{text[:16]}…" if _HASH.fullmatch(text) else text[:400]


def _names(listed: Sequence[Any]) -> str:
    shown = " ".join(without_folders(str(item))[:120] for item in listed[:_LISTED])
    return shown + (f" and {len(listed) - _LISTED:,} more" if len(listed) > _LISTED else "")


def _count(value: Any) -> str:
    ok = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60
    return f"{value:,}" if ok else ""


def _learned(report: Mapping[str, Any]) -> str:
    learned, tokens = report.get("supervised_tokens"), report.get("tokens")
    if not _count(learned) or not _count(tokens) or not tokens:
        return _count(learned)
    return f"{learned:,} ({learned / tokens:.1%})"


def _sources(sources: Any) -> Iterator[list[str]]:
    if isinstance(sources, Mapping):
        sources = list(sources.values())
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, Mapping):
            name = without_folders(str(source.get("path") or source.get("file") or "?"))
            yield [name, _count(source.get("rows")), str(source.get("sha256") or "")[:16]]
