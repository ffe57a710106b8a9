"""What is decided of drafts, by whom; how far a sample speaks for the rest; the accepted rows."""

from __future__ import annotations

import getpass
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlx_itune.dataset.drafts.records import (
    DRAFTS,
    Choice,
    Decision,
    Draft,
    append,
    conversation,
    read_decisions,
    read_drafts,
)
from mlx_itune.dataset.importing.folder import new_folder
from mlx_itune.dataset.ingest.run import PASSAGES
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.json_files import parse_object, read_object
from mlx_itune.kit.wording import did_you_mean, percent

# Of the normal distribution, for 95 % (Wilson, 1927).
_Z = 1.959964
# Fewer decisions on a sample say nothing of the rest.
FEWEST_SAMPLED = 10


@dataclass(frozen=True)
class State:
    """Of `drafts`, how many are decided and how; decisions on drafts of a sample among them."""

    drafts: int
    accepted: int
    edited: int
    rejected: int
    pending: int
    sampled: int
    operators: dict[str, int]


@dataclass(frozen=True)
class Estimate:
    """How good the pending drafts of at most `most_doubt` are, by those of a sample that were
    decided: `good` of `sampled`, between `low` and `high` of all (95 %)."""

    most_doubt: float
    pending: int
    sampled: int
    good: int
    low: float
    high: float

    def __str__(self) -> str:
        span = f"between {percent(self.low)} and {percent(self.high)} of them are good (95 %)"
        return f"{self.good} of {self.sampled} sampled were good: {span}"


@dataclass(frozen=True)
class Agreement:
    """Of drafts that two operators decided: the share on which they agree, and Cohen's kappa
    (1960), None where both said the same of all."""

    operators: tuple[str, str]
    drafts: int
    share: float
    kappa: float | None


class Review:
    """The drafts of a folder and the decisions on them. by: who decides; the login name unless
    said. Raises DataError, StorageError."""

    def __init__(self, folder: Path | str, by: str | None = None) -> None:
        self.folder = Path(folder)
        self._drafts = read_drafts(self.folder)
        self._decisions = read_decisions(self.folder)
        with suppress(OSError, KeyError, ImportError):
            by = by or getpass.getuser()
        self.by = by or "unknown"

    def draft(self, id: str) -> Draft:
        """The draft of an id. Raises UsageError."""
        if id not in self._drafts:
            near = did_you_mean(id, self._drafts)
            raise UsageError(f"there is no draft {id}", where=str(self.folder), hint=near)
        return self._drafts[id][0]

    def passage(self, draft: Draft, home: Path | None = None) -> str | None:
        """What a draft was made of, where its folder is still there; home: in here alone. Raises
        DataError for records that are none."""
        grown = self.folder / "grow.json"
        if draft.passage is None or not grown.is_file():
            return None
        place = str(read_object(grown, error=DataError).get("source"))
        path = ((home or Path()) / place / PASSAGES).resolve()
        if not path.is_file() or not (home is None or path.is_relative_to(home)):
            return None
        with path.open("rb") as lines:
            every = (parse_object(line, where=str(path), error=DataError) for line in lines)
            return next(
                (str(it.get("text")) for it in every if it.get("id") == draft.passage), None
            )

    @property
    def decided(self) -> dict[str, Decision]:
        """The decision that counts on each draft: the last one, whoever made it."""
        return {each.id: each for each in self._decisions if each.id in self._drafts}

    def pending(self, sample: int | None = None, seed: int = 0) -> list[Draft]:
        """Those without a decision of this operator, the most doubtful first; `sample`: of so many
        drawn at random from all, the same ones for a seed."""
        own = {each.id for each in self._decisions if each.by == self.by}
        ids = [*self._drafts]
        if sample is not None:
            ids = random.Random(seed).sample(ids, min(sample, len(ids)))
            return [self._drafts[id][0] for id in ids if id not in own]
        left = [self._drafts[id][0] for id in ids if id not in own and id not in self.decided]
        return sorted(left, key=lambda draft: -draft.doubt)

    def decide(
        self,
        id: str,
        decision: Choice,
        *,
        messages: list[dict[str, Any]] | None = None,
        reason: str | None = None,
        sample: bool = False,
    ) -> Decision:
        """Log a decision, at once. messages: those of an edit. Raises UsageError, DataError for
        messages that are no row, StorageError."""
        self.draft(id)
        if (decision == "edit") != (messages is not None):
            raise UsageError("an edit has messages, and nothing else has")
        if messages is not None:
            conversation(messages, f"the edit of {id}")
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        made = Decision(id, decision, self.by, at, messages, reason, sample)
        append(self.folder, made)
        self._decisions.append(made)
        return made

    def estimate(self, most_doubt: float) -> Estimate:
        """What the sample says of the pending drafts of at most so much doubt. An edited draft was
        not good. Raises DataError where too few of the sample were decided."""
        decided = self.decided
        within = {id for id, (draft, _) in self._drafts.items() if draft.doubt <= most_doubt}
        sampled = [each for each in decided.values() if each.sample and each.id in within]
        if len(sampled) < FEWEST_SAMPLED:
            what = f"{len(sampled)} drafts of a sample with a doubt of at most {most_doubt:g} are"
            hint = "review a larger --sample first"
            raise DataError(f"{what} decided, {FEWEST_SAMPLED} are needed", hint=hint)
        good = sum(each.decision == "accept" for each in sampled)
        low, high = _wilson(good, len(sampled))
        pending = len(within - decided.keys())
        return Estimate(most_doubt, pending, len(sampled), good, low, high)

    def accept_rest(self, most_doubt: float) -> Estimate:
        """Accept the pending drafts of at most so much doubt, on the word of the sample, which is
        logged with each. Raises DataError, StorageError."""
        found = self.estimate(most_doubt)
        reason = f"by its score, doubt at most {most_doubt:g}: {found}"
        for id, (draft, _) in self._drafts.items():
            if draft.doubt <= most_doubt and id not in self.decided:
                self.decide(id, "accept", reason=reason)
        return found

    def state(self) -> State:
        """How far it has come."""
        decided = self.decided
        kinds = Counter(each.decision for each in decided.values())
        return State(
            drafts=len(self._drafts),
            accepted=kinds["accept"],
            edited=kinds["edit"],
            rejected=kinds["reject"],
            pending=len(self._drafts) - len(decided),
            sampled=sum(each.sample for each in decided.values()),
            operators=dict(Counter(each.by for each in self._decisions)),
        )

    def agreement(self) -> list[Agreement]:
        """Of each two operators who decided the same drafts; to edit is to accept with a mend."""
        last: dict[str, dict[str, bool]] = {}
        for each in self._decisions:
            last.setdefault(each.by, {})[each.id] = each.decision != "reject"
        names = sorted(last)
        pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
        return [
            _agreement((a, b), [(last[a][id], last[b][id]) for id in last[a].keys() & last[b]])
            for a, b in pairs
            if last[a].keys() & last[b]
        ]

    def accepted_to(self, out: Path | str) -> State:
        """Write the accepted rows as a new data folder, each with its draft, passage and reviewer;
        what was rejected or edited is listed there. Raises DataError where none was accepted,
        UsageError, StorageError."""
        decided, path = self.decided, self.folder / DRAFTS
        settings = {"operators": [*self.state().operators]}
        with new_folder(Path(out), "review", [path], settings=settings, operator=self.by) as made:
            for id, (draft, place) in self._drafts.items():
                choice = decided.get(id)
                tags = {"draft": id, "passage": draft.passage, "document": draft.source}
                tags |= {"recipe": draft.recipe, "reviewer": choice.by if choice else None}
                kept = {key: tag for key, tag in tags.items() if tag}
                row = conversation(draft.messages, place, {"source": self.folder.name, **kept})
                if choice is None:
                    made.leave_out(row, "pending")
                elif choice.decision == "reject":
                    made.remove(row, "rejected", choice.reason or "")
                elif choice.messages is not None:
                    mended = conversation(choice.messages, place, row.tags)
                    made.add("train", replace(mended, checked=True), before=row, reason="edited")
                else:
                    made.add("train", row)
        return self.state()


def _wilson(good: int, of: int) -> tuple[float, float]:
    share, z2 = good / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def _agreement(names: tuple[str, str], both: Sequence[tuple[bool, bool]]) -> Agreement:
    share = sum(a == b for a, b in both) / len(both)
    yes = [sum(each[n] for each in both) / len(both) for n in (0, 1)]
    by_chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    kappa = None if by_chance == 1 else (share - by_chance) / (1 - by_chance)
    return Agreement(names, len(both), share, kappa)
