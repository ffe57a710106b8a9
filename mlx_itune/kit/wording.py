"""Numbers and lists as people read them: the same words in every message, table and page."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable

from mlx_itune.kit.errors import UsageError, closest


def size(count_bytes: float) -> str:
    """A size in units of a thousand: "512 bytes", "2.8 MB", "1.4 GB"."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count_bytes >= 0.9995 * bytes_each:
            return f"{count_bytes / bytes_each:,.1f} {unit}"
    return count(round(count_bytes), "byte")


def duration(elapsed_s: float) -> str:
    """A time: "4.2 s", "3 min 05 s", "2 h 14 min"."""
    if elapsed_s < 59.95:
        return f"{elapsed_s:.1f} s"
    minutes, seconds = divmod(round(elapsed_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


_UNITS = {"h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_SPELLED = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?\s*(?:h|min|m|s)\s*)+")
_PART = re.compile(r"([0-9.]+)\s*(h|min|m|s)")


def seconds_of(text: str) -> float:
    """A time as it is typed: "90s", "10m", "1h30m". Raises UsageError."""
    if not _SPELLED.fullmatch(text.strip().lower()):
        raise UsageError(f"{text!r} is no time", hint="write it as 90s, 10m or 1h30m")
    return sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text.lower()))


def count(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 row", "3,204 rows"; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Iterable[object], most: int = 3) -> str:
    """ "a, b, c and 4 more"; of an iterable that is empty, an empty text."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def number(value: float | None, digits: int = 4) -> str:
    """A loss or a divergence; a dash where nothing was measured."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """0.925 as "92.5 %"; a dash where nothing was measured."""
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def brief(said: object, most: int = 300) -> str:
    """What an error says, on one line of at most `most` characters; if nothing, its kind."""
    return " ".join(str(said).split())[:most] or type(said).__name__


def did_you_mean(name: str, options: Iterable[str]) -> str | None:
    """ "did you mean train?", or None where no option is near, nor what another tool calls so."""
    options = list(options)
    near = name_here(name, options) or closest(name, options)
    return f"did you mean {near}?" if near else None


def known(what: str, name: str, options: Iterable[str]) -> str:
    """`name`, which is one of the options. Raises UsageError with the nearest otherwise."""
    options = list(options)
    if name not in options:
        hint = did_you_mean(name, options) or f"one of {', '.join(options)}"
        raise UsageError(f"there is no {what} {name!r}", hint=hint)
    return name


def name_here(name: str, options: Iterable[str]) -> str | None:
    """The option that is `name`, or that another tool calls so; dashes and case do not count."""

    def folded(text: str) -> str:
        return text.lstrip("-").lower().replace("-", "_")

    wanted = {folded(name), _elsewhere().get(folded(name))}
    return next((option for option in options if folded(option) in wanted), None)


@functools.cache
def _elsewhere() -> dict[str, str]:
    """What other tools call our settings: theirs -> ours."""
    from mlx_itune.kit.json_files import data_file

    names = data_file(__file__, "elsewhere")
    return {theirs: ours for ours, listed in names.items() for theirs in listed.split()}
