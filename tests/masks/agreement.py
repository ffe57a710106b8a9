"""The renderer against the oracle, conversation by conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import TemplateError

from masks.conversations import Generator
from masks.family import Family, Refused
from masks.oracle import Expected, Run, controls_of, expect, learned_turns, messages_of, runs_of
from masks.vocabularies import Coder, coder
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.render import TokenizedExample, render_many
from mlx_itune.dataset.tokens.chat_template import built_in
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

_ROWS = 200


@dataclass
class Tally:
    """What was compared, and every disagreement as (conversation, learn, what)."""

    rows: int = 0
    turns: int = 0
    tokens: int = 0
    learned: int = 0
    refused: int = 0
    # Rows whose turns are all right, but were not put into as few examples as could be.
    apart: int = 0
    faults: list[tuple[Conversation, str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name in ("rows", "turns", "tokens", "learned", "refused", "apart"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults

    def told(self, most: int = 3) -> str:
        """How much is wrong, and the shortest conversations that are."""
        shortest = sorted(self.faults, key=lambda fault: len(repr(fault[0])))[:most]
        lines = [f"{len(self.faults)} of {self.rows} conversations"]
        for row, learn, problem in shortest:
            turns = [(t.role, t.content, t.weight, t.tool_calls) for t in row.turns]
            lines.append(f"  {row.origin} --learn {learn}: {problem}\n  {turns!r}"[:2000])
        return "\n".join(lines)


@cache
def chat_tokenizer(base: str, family: Family) -> ChatTokenizer:
    """The project's tokenizer for a family, as load_tokenizer would build it."""
    hf = coder(base, family).hf
    eos = [hf.convert_tokens_to_ids(token) for token in family.more_eos]
    return ChatTokenizer(hf, template_of(family), eos_ids=eos)


def template_of(family: Family) -> Any:
    if family.built_in is None:
        return family.jinja
    return built_in(family.built_in, adds_bos=family.bos is not None, knows_im_end=True)


def jinja_text(hf: Any, family: Family, messages: Any, tools: Any, prompt: bool) -> str:
    """transformers' own rendering, without the project in between."""
    template = template_of(family)
    if isinstance(template, dict):
        template = template["tool_use" if tools else "default"]
    return str(
        hf.apply_chat_template(
            messages,
            tools=list(tools) or None,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
        )
    )


def compare(
    base: str, family: Family, count: int, *, seed: int = 0, hostile: bool = False
) -> Tally:
    """Generate `count` conversations and compare every token of them."""
    generator = Generator(family, seed, hostile=hostile)
    total = Tally()
    made = [(generator.conversation(n + 1), generator.learn()) for n in range(count)]
    for learn in ("all", "last", "marked"):
        rows = [row for row, how in made if how == learn]
        for start in range(0, len(rows), _ROWS):
            total.add(_compare_rows(base, family, rows[start : start + _ROWS], learn, hostile))
    return total


def _compare_rows(
    base: str, family: Family, rows: Sequence[Conversation], learn: Any, hostile: bool
) -> Tally:
    view, tokenizer = coder(base, family), chat_tokenizer(base, family)
    tally = Tally(rows=len(rows))
    accepted: list[tuple[Conversation, Expected]] = []
    for row in rows:
        try:
            accepted.append((row, expect(family, view, row, learn)))
        except Refused as reason:
            tally.refused += 1
            if not isinstance(next(render_many([row], tokenizer, learn)), DataError):
                tally.faults.append((row, learn, f"the oracle refuses it ({reason}), render not"))
    wanted = [row for row, _ in accepted]
    rendered = list(render_many(wanted, tokenizer, learn))
    for (row, expected), examples in zip(accepted, rendered, strict=True):
        if isinstance(examples, DataError):
            tally.refused += 1
            if not hostile:
                tally.faults.append((row, learn, f"render refuses it: {examples}"))
            continue
        problem = disagreement(view, tokenizer, row, expected, examples, hostile=hostile)
        if problem:
            tally.faults.append((row, learn, problem))
        elif len(examples) > len(expected.examples):
            tally.apart += 1
        tally.turns += len(expected.prompts)
        tally.tokens += sum(len(ids) for ids, _ in expected.examples)
        tally.learned += sum(len(said) for _, said, _ in runs_of(expected.examples))
    return tally


def disagreement(
    view: Coder,
    tokenizer: ChatTokenizer,
    row: Conversation,
    expected: Expected,
    examples: Sequence[TokenizedExample],
    *,
    hostile: bool = False,
) -> str | None:
    """The first difference in words, or None."""
    for n, ids in expected.prompts.items():
        given = tokenizer.prompt_ids(row.turns[:n], row.tools)
        if given != ids:
            return f"turn {n}: prompt_ids differ\n{difference(view, ids, given)}"
    found = [(tuple(e.input_ids.tolist()), tuple(e.weights.tolist())) for e in examples]
    for ids, weights in found:
        if len(ids) != len(weights) or not weights or not weights[-1] > 0:
            return f"an example that does not end in a learned token: {show(view, ids[-20:])}"
    given, wanted = runs_of(found), runs_of(expected.examples)
    if given == wanted:
        return _stray_controls(view, expected, given) if hostile else None
    lines = [f"{len(wanted)} learned runs expected, {len(given)} given"]
    lacking = [run for run in wanted if run not in given]
    extra = [run for run in given if run not in wanted]
    for (before, said, weights), (its, own, given_weights) in zip(lacking, extra, strict=False):
        if before != its:
            lines.append(f"contexts differ\n{difference(view, before, its)}")
        elif said != own:
            lines.append(f"replies differ\n{difference(view, (*before, *said), (*its, *own))}")
        else:
            lines.append(f"weights differ: {weights[0]} and {given_weights[0]}")
    return "\n".join(lines)


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
            return f"special tokens {show(view, found)} where {show(view, meant)} is meant"
    return None


def difference(view: Coder, oracle: Sequence[int], given: Sequence[int]) -> str:
    """Where two rows of tokens part."""
    n = 0
    while n < min(len(oracle), len(given)) and oracle[n] == given[n]:
        n += 1
    lines = []
    for name, ids in (("oracle", oracle), ("given ", given)):
        before, after = show(view, ids[max(0, n - 8) : n]), show(view, ids[n : n + 16])
        lines.append(f"  {name} ({len(ids)}) ...{before} >>> {after}")
    return "\n".join(lines)


def show(view: Coder, ids: Sequence[int]) -> str:
    """Tokens one after the other."""
    return "|".join(view.full.id_to_token(i) or f"?{i}" for i in ids)


def text_problems(base: str, family: Family, count: int, *, seed: int = 0) -> list[str]:
    """Where the oracle's text is not what transformers makes of the Jinja file."""
    generator, hf = Generator(family, seed), coder(base, family).hf
    rows = (generator.conversation(number + 1) for number in range(count))
    return [problem for row in rows for problem in _text_problems(hf, family, row)]


def _text_problems(hf: Any, family: Family, row: Conversation) -> list[str]:
    messages, tools = messages_of(row), row.tools
    replies = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    asked = [(n, True) for n in replies] + [(n + 1, False) for n in replies]
    problems = []
    for n, prompt in (*asked, (len(messages), False)):
        try:
            given = jinja_text(hf, family, messages[:n], tools, prompt)
        except TemplateError:
            given = None
        try:
            own = "".join(family.pieces(messages[:n], tools, prompt))
        except Refused:
            own = None
        if given != own:
            problems.append(f"{row.origin} [:{n}] {prompt}\n  jinja  {given!r}\n  oracle {own!r}")
    try:
        turns = learned_turns(family, row, "all")
        whole = "".join(family.pieces(messages, tools, False))
    except Refused:
        return problems
    for turn in turns:
        full, reply = "".join((*turn.prompt, *turn.reply)), "".join(turn.reply)
        if whole.startswith(full) != turn.kept and not turn.open_ended:
            kept = f"kept is {turn.kept}\n {whole!r}\n {full!r}"
            problems.append(f"{row.origin} turn {turn.n}: {kept}")
        if reply not in "".join(family.pieces(messages[: turn.n + 1], tools, False)):
            problems.append(f"{row.origin} turn {turn.n}: the reply {reply!r} is not in the text")
    return problems
