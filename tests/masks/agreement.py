"""The renderer against the oracle, conversation by conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from masks.conversations import Generator
from masks.family import Family, Refused
from masks.oracle import Expected, Run, controls_of, expect, runs_of
from masks.vocabularies import Coder, coder
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.render import TokenizedExample, render_many
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError


@dataclass
class Tally:
    """What was compared, and every disagreement as (conversation, learn, what)."""

    rows: int = 0
    turns: int = 0
    refused: int = 0
    # Rows whose turns are all right, but were not put into as few examples as could be.
    apart: int = 0
    faults: list[tuple[Conversation, str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def told(self, most: int = 3) -> str:
        """How much is wrong, and the shortest conversations that are."""
        lines = [f"{len(self.faults)} of {self.rows} conversations"]
        for row, learn, problem in sorted(self.faults, key=lambda fault: len(repr(fault)))[:most]:
            lines.append(f"  {row.origin} --learn {learn}: {problem}\n  {row.turns!r}"[:2000])
        return "\n".join(lines)


@cache
def chat_tokenizer(base: str, family: Family) -> ChatTokenizer:
    """The project's tokenizer for a family, as load_tokenizer would build it."""
    hf = coder(base, family).hf
    eos = [hf.convert_tokens_to_ids(token) for token in family.more_eos]
    return ChatTokenizer(hf, family.template, eos_ids=eos, options=dict(family.options))


def compare(
    base: str, family: Family, count: int, *, seed: int = 0, hostile: bool = False
) -> Tally:
    """Generate `count` conversations and compare every token of them."""
    generator = Generator(family, seed, hostile=hostile)
    view, tokenizer = coder(base, family), chat_tokenizer(base, family)
    tally = Tally(rows=count)
    made = [(generator.conversation(n + 1), generator.learn()) for n in range(count)]
    for learn in ("all", "last", "marked"):
        accepted: dict[int, Expected] = {}
        for n, (row, how) in enumerate(made):
            if how != learn:
                continue
            try:
                accepted[n] = expect(view, row, learn)
            except Refused as reason:
                tally.refused += 1
                if not isinstance(next(render_many([row], tokenizer, how)), DataError):
                    tally.faults.append((row, how, f"the oracle refuses it ({reason}), not render"))
        rows = [made[n][0] for n in accepted]
        rendered = render_many(rows, tokenizer, learn)
        for row, expected, examples in zip(rows, accepted.values(), rendered, strict=True):
            if not isinstance(examples, DataError):
                problem = disagreement(view, tokenizer, row, expected, examples)
                tally.apart += not problem and len(examples) > len(expected.examples)
                tally.turns += len(expected.prompts)
            else:
                # What could come together to a control token may be refused.
                problem = None if hostile else f"render refuses it: {examples}"
                tally.refused += 1
            if problem:
                tally.faults.append((row, learn, problem))
    return tally


def disagreement(
    view: Coder,
    tokenizer: ChatTokenizer,
    row: Conversation,
    expected: Expected,
    examples: Sequence[TokenizedExample],
) -> str | None:
    """The first difference in words, or None."""
    for n, ids in expected.prompts.items():
        given = tokenizer.prompt_ids(row.turns[:n], row.tools)
        if given != ids:
            return f"turn {n}: the prompt is {_show(view, given)}, not {_show(view, ids)}"
    found = [(tuple(e.input_ids.tolist()), tuple(e.weights.tolist())) for e in examples]
    for ids, weights in found:
        if len(ids) != len(weights) or not weights or not weights[-1] > 0:
            return f"an example that does not end in a learned token: {_show(view, ids[-20:])}"
    given_runs, wanted = runs_of(found), runs_of(expected.examples)
    if given_runs == wanted:
        return _stray_controls(view, expected, given_runs)
    lacking = [run for run in wanted if run not in given_runs]
    extra = [run for run in given_runs if run not in wanted]
    return "\n".join(
        f"{name} learned {_show(view, said[-40:])} after {_show(view, before[-20:])}, {weights}"
        for name, runs in (("oracle", lacking), ("given ", extra))
        for before, said, weights in runs[:1]
    )


def _stray_controls(view: Coder, expected: Expected, runs: Sequence[Run]) -> str | None:
    """Special tokens that no template wrote: content must not become one."""
    by_prompt = {
        tuple(ids): controls_of(view, expected.named[n]) for n, ids in expected.prompts.items()
    }
    for before, said, _ in runs:
        found = [i for i in (*before, *said) if i in view.specials]
        meant = by_prompt.get(before, [])
        # Where a template ends a turn with nothing, the end token is appended.
        if found not in (meant, [*meant, view.ids[view.family.eos]]):
            return f"special tokens {_show(view, found)} where {_show(view, meant)} is meant"
    return None


def _show(view: Coder, ids: Sequence[int]) -> str:
    return "|".join(view.full.id_to_token(i) or f"?{i}" for i in ids)
