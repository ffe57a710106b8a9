"""The cleaning steps by name, and the presets that list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_itune.dataset.checking.lints import Lint, excerpt, load_lints
from mlx_itune.dataset.checking.near_duplicates import THRESHOLD
from mlx_itune.dataset.cleaning import filters, texts, turns
from mlx_itune.dataset.cleaning.outcome import KEPT, Dropped, Outcome, RowStep
from mlx_itune.dataset.cleaning.whole import DropRepeats, UnifySystem, WholeStep
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.errors import UsageError, closest

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
    """What the steps can be told. `codes`: lints that `refusals` drops (None: those marked so)."""

    lints: Sequence[Lint] = field(default_factory=load_lints)
    codes: Sequence[str] | None = None
    least_chars: int = 16
    scripts: Sequence[str] = ()
    script_share: float = 0.6
    pii: Sequence[str] | None = None
    threshold: float = THRESHOLD


def make_steps(names: Sequence[str], options: StepOptions) -> list[tuple[str, Step]]:
    """The steps of these names, in order. Raises UsageError for an unknown or impossible one."""
    made: list[tuple[str, Step]] = []
    for name in names:
        if name not in STEPS:
            near = closest(name, STEPS)
            hint = f"did you mean {near}?" if near else f"one of {', '.join(STEPS)}"
            raise UsageError(f"there is no step {name!r}", hint=hint)
        if any(name == known for known, _ in made):
            raise UsageError(f"the step {name!r} is given twice")
        made.append((name, STEPS[name](options)))
        if name in MENDING and any(isinstance(step, WholeStep) for _, step in made):
            raise UsageError(
                f"the step {name!r} mends rows and comes too late",
                hint="put it before the steps that compare rows",
            )
    return made


def _lint_step(options: StepOptions) -> RowStep:
    known = {lint.code: lint for lint in options.lints}
    if options.codes is None:
        chosen = [lint for lint in options.lints if lint.drop]
    else:
        unknown = [code for code in options.codes if code not in known]
        if unknown:
            near = closest(unknown[0], known)
            hint = f"did you mean {near}?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"there is no lint {unknown[0]!r}", hint=hint)
        chosen = [known[code] for code in options.codes]

    def step(row: Conversation) -> Outcome:
        for lint in chosen:
            for number, turn in enumerate(row.turns, 1):
                found = lint.find(turn)
                if found is not None:
                    return Dropped(f"{lint.code}: {excerpt(found)} in turn {number} ({turn.role})")
        return KEPT

    return step


def _control_strings(options: StepOptions) -> list[str]:
    lint = next((lint for lint in options.lints if lint.code == "template-text"), None)
    if lint is None or not lint.texts:
        raise UsageError("the lints name no control strings: no template-text with texts")
    return list(lint.texts)


def _scripts(options: StepOptions) -> RowStep:
    if not options.scripts:
        raise UsageError(
            "the step 'language' needs scripts", hint="give --language, such as latin or cjk"
        )
    for name in options.scripts:
        if name not in filters.SCRIPTS:
            near = closest(name, filters.SCRIPTS)
            hint = f"did you mean {near}?" if near else f"one of {', '.join(filters.SCRIPTS)}"
            raise UsageError(f"there is no script {name!r}", hint=hint)
    return filters.keep_scripts(options.scripts, options.script_share)


def _plain(step: RowStep) -> Callable[[StepOptions], Step]:
    return lambda options: step


STEPS: dict[str, Callable[[StepOptions], Step]] = {
    "html-to-text": _plain(texts.html_to_text),
    "copy-code": _plain(texts.remove_copy_code),
    "whitespace": _plain(texts.normalise_whitespace),
    "trim-leading": _plain(turns.trim_leading),
    "trim-trailing": _plain(turns.trim_trailing),
    "merge-turns": _plain(turns.merge_turns),
    "drop-irregular": _plain(turns.drop_irregular),
    "empty-answers": _plain(turns.drop_empty_answers),
    "too-short": lambda options: filters.drop_short(options.least_chars),
    "language": _scripts,
    "refusals": _lint_step,
    "control-text": lambda options: texts.break_control_text(_control_strings(options)),
    "drop-control-text": lambda options: texts.drop_control_text(_control_strings(options)),
    "pii": lambda options: texts.redact_personal_data(options.pii),
    "unify-system": lambda options: UnifySystem(),
    "exact-duplicates": lambda options: DropRepeats("exact"),
    "pair-duplicates": lambda options: DropRepeats("pair"),
    "near-duplicates": lambda options: DropRepeats("near", options.threshold),
}
