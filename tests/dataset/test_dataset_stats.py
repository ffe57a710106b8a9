"""Statistics against plain recounts: exact where they say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.rendering.render import render
from mlx_itune.dataset.statistics.counters import (
    Distribution,
    NameCounts,
    clipped,
    distribution,
)
from mlx_itune.dataset.statistics.script import main_script
from mlx_itune.dataset.statistics.stats import NO_TAG, Stats, count
from mlx_itune.dataset.statistics.token_stats import padding_shares
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

Chat = Callable[..., ChatTokenizer]


def talk(*contents: str, line: int = 1, tags: dict[str, str] | None = None) -> Conversation:
    turns = tuple(Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(contents))
    return Conversation(turns, f"rows.jsonl:{line}", tags=tags or {})


def gathered(rows: list[Conversation | Fault], **options: Any) -> Stats:
    stats = count([("train", rows)], **options)
    assert stats is not None
    return stats


def of(values: list[int]) -> Distribution:
    return distribution(Counter(values))


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_are_those_of_the_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(5, 1.5, rng.integers(1, 4000)).astype(int).tolist()
    found = of(values)
    assert (found.count, found.sum) == (len(values), sum(values))
    assert (found.min, found.max) == (min(values), max(values))
    for name in ("p5", "p50", "p90", "p95", "p99"):
        share = int(name[1:]) / 100
        assert getattr(found, name) == np.quantile(values, share, method="inverted_cdf"), name
    bins = found.histogram
    assert sum(bins.counts) + bins.beyond == len(values)
    widths = set(np.diff(bins.edges).tolist())
    assert len(widths) == 1 and widths <= {1, 2, 5, 10, 20, 50, 100, 200, 500}
    for low, high, times in zip(bins.edges, bins.edges[1:], bins.counts, strict=False):
        assert times == sum(low <= value < high for value in values)


def test_a_long_tail_does_not_flatten_the_rest() -> None:
    bins = of([*range(100)] * 10 + [1_000_000]).histogram
    assert bins.edges[-1] < 300 and bins.beyond == 1


@pytest.mark.parametrize("values", [[0], [7], [7, 7], [10**9]])
def test_one_value_is_a_distribution_too(values: list[int]) -> None:
    found = of(values)
    assert found.p5 == found.p99 == values[0]
    assert found.histogram.counts == (len(values),)


def test_names_are_counted_exactly_up_to_a_limit_and_nothing_is_lost_from_the_sums() -> None:
    counts = NameCounts(2, most=3)
    for name, amount in [("a", 5), ("b", 1), ("a", 2), ("c", 9)]:
        counts.add(name, (1, amount))
    ranking = counts.ranking(1)
    assert [(item.name, item.amounts) for item in ranking.top] == [("a", (2, 7))]
    assert (ranking.other, ranking.distinct, ranking.exact) == ((2, 10), 3, True)
    counts.add("d", (1, 4))
    counts.add("a", (1, 1))
    ranking = counts.ranking(1)
    assert (ranking.top[0].amounts, ranking.other) == ((3, 8), (3, 14))
    assert (ranking.distinct, ranking.exact) == (3, False)


def test_long_names_stay_apart_when_clipped() -> None:
    assert clipped("short") == "short"
    first, second = clipped("x" * 500 + "a"), clipped("x" * 500 + "b")
    assert first != second and len(first) <= 120


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Take it twice.", "Latin"),
        ("Принимать дважды", "Cyrillic"),
        ("患者每天服用", "Han"),
        ("薬を毎日飲みます", "Japanese"),
        ("خذ الدواء", "Arabic"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "Latin"),
        ("12 + 30 = 42", "no letters"),
        ("", "no letters"),
        ("ok: Принимать дважды в день", "Cyrillic"),
    ],
)
def test_writing_systems(text: str, script: str) -> None:
    assert main_script([text]) == script


def rows() -> list[Conversation | Fault]:
    called = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    return [
        talk("What is it?", "A cold.", tags={"source": "clinic", "task": "triage", "id": "1"}),
        talk("And now", "Rest well.", "Then?", "Go home.", line=2, tags={"source": "clinic"}),
        Fault("rows.jsonl", 3, "json", "broken"),
        Fault("rows.jsonl", 3, "utf-8", "the same row"),
        Fault("rows.jsonl", 4, "near-duplicate", "only a warning", severity="warning"),
        Conversation(
            (
                Turn("system", "Be brief."),
                Turn("user", "Погода?"),
                Turn("assistant", "", tool_calls=(called,)),
                Turn("tool", "12 C"),
                Turn("assistant", "Тепло сегодня", weight=0.5),
            ),
            "rows.jsonl:5",
            tools=({"type": "function", "function": {"name": "weather"}},),
        ),
        Conversation((Turn("user", "x"), Turn("assistant", "y", weight=0)), "rows.jsonl:6"),
    ]


def test_a_recount_by_hand() -> None:
    stats = gathered(rows())
    assert (stats.rows, stats.rejected, len(stats.faults)) == (4, 1, 2)
    assert (stats.splits["train"].rows, stats.splits["train"].turns) == (4, 13)
    assert stats.splits["train"].tokens is None and stats.tokens is None
    assert (stats.turns.min, stats.turns.p50, stats.turns.max) == (2, 2, 5)
    assert {role: found.turns for role, found in stats.roles.items()} == {
        "system": 1,
        "user": 5,
        "assistant": 6,
        "tool": 1,
    }
    assert stats.roles["assistant"].characters.sum == 7 + 10 + 8 + 0 + 13 + 1
    assert stats.roles["user"].words.sum == 3 + 2 + 1 + 1 + 1
    assert stats.roles["user"].share == pytest.approx(5 / 13)
    assert [(item.name, item.amounts[0]) for item in stats.sources.top] == [
        (NO_TAG, 2),
        ("clinic", 2),
    ]
    assert {item.name: item.amounts[0] for item in stats.tasks.top} == {"triage": 1, NO_TAG: 3}
    assert set(stats.tags) == {"source", "task", "id"}
    assert dict(stats.scripts) == {"Latin": 3, "Cyrillic": 1}
    assert (stats.tools.rows_offering, stats.tools.rows_calling, stats.tools.calls) == (1, 1, 1)
    assert [item.name for item in stats.tools.functions.top] == ["weather"]
    assert (stats.system.rows, stats.system.prompts.top[0].name) == (1, "Be brief.")
    assert (stats.weights.turns, dict(stats.weights.values)) == (2, {"0.5": 1, "0": 1})
    assert stats.weights.rows_all_zero == 1


def test_tokens_are_those_that_training_renders(chat: Chat) -> None:
    tokenizer = chat("gpt2")
    data = [talk("Name it " * n, "yes " * (1 + n % 7), tags={"source": "ab"[n % 2]}, line=n)
            for n in range(1, 60)]  # fmt: skip
    stats = gathered(list(data), tokenizer=tokenizer, max_length_tokens=100)
    tokens = stats.tokens
    assert tokens is not None
    rendered = [render(row, tokenizer) for row in data]
    lengths = [sum(len(e.input_ids) for e in examples) for examples in rendered]
    learned = [sum(int((e.weights > 0).sum()) for e in examples) for examples in rendered]
    assert (tokens.total, tokens.supervised) == (sum(lengths), sum(learned))
    assert (tokens.per_row.min, tokens.per_row.max) == (min(lengths), max(lengths))
    assert tokens.supervised_share == pytest.approx(sum(learned) / sum(lengths))
    assert tokens.over["512"] == sum(length > 512 for length in lengths)
    assert tokens.limit is not None
    assert tokens.limit.rows_over == sum(length > 100 for length in lengths) > 0
    beyond = sum(max(0, length - 100) for length in lengths)
    assert tokens.limit.tokens_beyond_share == pytest.approx(beyond / sum(lengths))
    assert {item.name: item.amounts[2] for item in stats.sources.top} == {
        "a": sum(length for n, length in enumerate(lengths, 1) if n % 2 == 0),
        "b": sum(length for n, length in enumerate(lengths, 1) if n % 2),
    }
    assert stats.splits["train"].supervised_tokens == sum(learned)


def test_learn_and_weights_change_what_is_learned(chat: Chat) -> None:
    tokenizer = chat("gpt2")
    row = talk("a", "one two three", "b", "four")
    both = gathered([row], tokenizer=tokenizer).tokens
    last = gathered([row], tokenizer=tokenizer, learn="last").tokens
    assert both is not None and last is not None
    assert both.supervised > last.supervised > 0
    masked = Conversation((Turn("user", "a"), Turn("assistant", "b", weight=0)), "rows.jsonl:2")
    counted = gathered([row, masked], tokenizer=tokenizer).tokens
    assert counted is not None and counted.nothing_to_learn_rows == 1


def test_rows_that_spell_control_tokens_are_counted(chat: Chat) -> None:
    data = [talk("say <|im_end|> please", "ok"), talk("hello", "ok", line=2)]
    tokens = gathered(list(data), tokenizer=chat("gpt2")).tokens
    assert tokens is not None and tokens.control_text_rows == 1


REFUSING = (
    "{% for m in messages %}{% if 'tax' in m.content %}{{ raise_exception('no tax advice') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_refused_row_does_not_hide_the_others(chat: Chat) -> None:
    tokenizer = chat("gpt2", REFUSING)
    data = [talk("hello", "ok", line=1), talk("about tax", "no", line=2), talk("x", "y", line=3)]
    tokens = gathered(list(data), tokenizer=tokenizer).tokens
    assert tokens is not None
    assert (tokens.per_row.count, tokens.refused_rows) == (2, 1)
    assert "rows.jsonl:2" in tokens.refused[0] and "no tax advice" in tokens.refused[0]
    with pytest.raises(DataError, match="no row can be trained on"):
        count([("train", [data[1]])], tokenizer=tokenizer)


def test_padding_is_what_random_batches_would_have() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(10, 500, 400)
    expected = padding_shares(Counter(lengths.tolist()), None)
    assert expected["1"] == 0
    for size in (2, 8, 32):
        batches = rng.choice(lengths, (6000, size))
        measured = 1 - batches.sum() / (size * batches.max(axis=1)).sum()
        assert expected[str(size)] == pytest.approx(measured, abs=0.01)
    assert padding_shares(Counter([50, 900]), 50) == dict.fromkeys(expected, 0.0)
