"""The cleaning steps by name, and the presets that list them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_itune.dataset.checking.lints import Lint, excerpt, load_lints
from mlx_itune.dataset.checking.near_duplicates import THRESHOLD
from mlx_itune.dataset.cleaning import texts, turns
from mlx_itune.dataset.cleaning.outcome import Dropped, Outcome, RowStep
from mlx_itune.dataset.cleaning.pii import known_kinds
from mlx_itune.dataset.cleaning.whole import DropRepeats, UnifySystem, WholeStep
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import did_you_mean

Step = RowStep | WholeStep

PRESETS = {
    "default": (
        "whitespace", "empty-answers", "control-text", "exact-duplicates", "near-duplicates",
    ),
    "sharegpt": (
        "html-to-text", "copy-code", "trim-leading", "trim-trailing", "drop-irregular",
        "empty-answers", "too-short", "refusals", "control-text", "exact-duplicates",
        "pair-duplicates",
    ),
    "alpaca": (
        "whitespace", "empty-answers", "refusals", "exact-duplicates", "near-duplicates",
    ),
}  # fmt: skip
# What `refusals` drops beside the lints that say so themselves.
PRESET_CODES = {"alpaca": ("url-only", "attachment", "merged-instructions", "no-words")}
# Steps that work on rows which break the rules of a conversation.
MENDING = ("trim-leading", "trim-trailing", "merge-turns", "drop-irregular", "empty-answers")


@dataclass(frozen=True)
class StepOptions:
    """What the steps can be told.

    `drop`: codes of the lints that `refusals` drops (None: those marked so); `pii`: kinds of
    personal data (None, or "all": every one).
    """

    lints: Sequence[Lint] = field(default_factory=load_lints)
    drop: Sequence[str] | None = None
    min_chars: int = 16
    language: Sequence[str] | None = None
    script_share: float = 0.6
    pii: Sequence[str] | None = None
    similarity: float = THRESHOLD

    def with_preset(self, preset: str | None) -> StepOptions:
        """With the lints that a preset drops, unless some are chosen."""
        more = PRESET_CODES.get(preset or "", ())
        codes = [lint.code for lint in self.lints if lint.drop or lint.code in more]
        return replace(self, drop=codes) if more and self.drop is None else self

    @property
    def kinds(self) -> Sequence[str] | None:
        """The kinds of personal data to redact, None for all. Raises UsageError."""
        kinds = None if self.pii is None or list(self.pii) == ["all"] else self.pii
        known_kinds(kinds)
        return kinds


def steps_of(steps: Sequence[str] | None, preset: str | None, more: Sequence[str]) -> list[str]:
    """The steps in order; `more` of them come before the duplicates that they lay open."""
    names = list(steps or PRESETS[preset or "default"])
    for name in more:
        if name not in names:
            whole = (at for at, other in enumerate(names) if other.endswith("-duplicates"))
            names.insert(next(whole, len(names)), name)
    return names


def settings_of(names: Sequence[str], options: StepOptions) -> dict[str, Any]:
    """What a new folder says of how it was made: the steps, and the options that they read."""
    marked = [lint.code for lint in options.lints if lint.drop]
    read: dict[str, dict[str, Any]] = {
        "refusals": {"drop": options.drop or marked},
        "too-short": {"min-chars": options.min_chars},
        "language": {"language": options.language, "script-share": options.script_share},
        "pii": {"pii": options.kinds or "all"},
        "near-duplicates": {"similarity": options.similarity},
    }
    settings: dict[str, Any] = {"steps": names}
    for name in names:
        settings |= read.get(name, {})
    return settings


def _known(what: str, name: str, options: Iterable[str]) -> str:
    """`name`, if it is one of the options. Raises UsageError with the nearest otherwise."""
    options = list(options)
    if name not in options:
        hint = did_you_mean(name, options) or f"one of {', '.join(options)}"
        raise UsageError(f"there is no {what} {name!r}", hint=hint)
    return name


def make_steps(names: Sequence[str], options: StepOptions) -> list[tuple[str, Step]]:
    """The steps of these names, in order. Raises UsageError for an unknown or impossible one."""
    made: dict[str, Step] = {}
    for name in names:
        step = STEPS[_known("step", name, STEPS)](options)
        if name in made:
            raise UsageError(f"the step {name!r} is given twice")
        if name in MENDING and any(isinstance(before, WholeStep) for before in made.values()):
            raise UsageError(
                f"the step {name!r} mends rows and comes too late",
                hint="put it before the steps that compare rows",
            )
        made[name] = step
    return list(made.items())


def _drop_lints(options: StepOptions) -> RowStep:
    chosen = [lint for lint in options.lints if lint.drop]
    if options.drop is not None:
        lints = {lint.code: lint for lint in options.lints}
        chosen = [lints[_known("lint", code, lints)] for code in options.drop]

    def step(row: Conversation) -> Outcome:
        for lint in chosen:
            for number, turn in enumerate(row.turns, 1):
                found = lint.find(turn)
                if found is not None:
                    return Dropped(f"{lint.code}: {excerpt(found)} in turn {number} ({turn.role})")
        return None

    return step


def _control_strings(options: StepOptions) -> Sequence[str]:
    found = [lint.texts for lint in options.lints if lint.code == "template-text" and lint.texts]
    if not found:
        raise UsageError("the lints name no control strings: no template-text with texts")
    return found[0]


def _keep_scripts(options: StepOptions) -> RowStep:
    if not options.language:
        raise UsageError(
            "the step 'language' needs scripts", hint="give --language, such as latin or cjk"
        )
    names = [_known("script", name, turns.SCRIPTS) for name in options.language]
    return turns.keep_scripts(names, options.script_share)


STEPS: dict[str, Callable[[StepOptions], Step]] = {
    "html-to-text": lambda _: texts.html_to_text,
    "copy-code": lambda _: texts.remove_copy_code,
    "whitespace": lambda _: texts.normalise_whitespace,
    "trim-leading": lambda _: turns.trim_leading,
    "trim-trailing": lambda _: turns.trim_trailing,
    "merge-turns": lambda _: turns.merge_turns,
    "drop-irregular": lambda _: turns.drop_irregular,
    "empty-answers": lambda _: turns.drop_empty_answers,
    "too-short": lambda options: turns.drop_short(options.min_chars),
    "language": _keep_scripts,
    "refusals": _drop_lints,
    "control-text": lambda options: texts.break_control_text(_control_strings(options)),
    "drop-control-text": lambda options: texts.drop_control_text(_control_strings(options)),
    "pii": lambda options: texts.redact_personal_data(options.kinds),
    "unify-system": lambda _: UnifySystem(),
    "exact-duplicates": lambda _: DropRepeats("exact"),
    "pair-duplicates": lambda _: DropRepeats("pair"),
    "near-duplicates": lambda options: DropRepeats("near", options.similarity),
}
