"""Statistics against plain recounts: exact where they say so."""

from collections import Counter

import numpy as np
import pytest

from mlx_itune.dataset.conversation import Conversation, Fault, Turn
from mlx_itune.dataset.rendering.render import render
from mlx_itune.dataset.statistics.counters import NameCounts, clipped, distribution, main_script
from mlx_itune.dataset.statistics.stats import NO_TAG, count, padding_shares
from mlx_itune.kit.errors import DataError


def talk(*contents, line=1, tags=None, weight=None):
    turns = tuple(
        Turn("assistant", text, weight) if n % 2 else Turn("user", text)
        for n, text in enumerate(contents)
    )
    return Conversation(turns, f"rows.jsonl:{line}", tags=tags or {})


def counted(*rows, **options):
    return count([("train", rows)], **options)


def first_amounts(ranking):
    return {item.name: item.amounts[0] for item in ranking.top}


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_and_bins_are_those_of_the_values(seed):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(5, 1.5, rng.integers(1, 4000)).astype(int).tolist()
    found = distribution(Counter(values))
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


def test_a_long_tail_does_not_flatten_the_rest_and_one_value_is_enough():
    bins = distribution(Counter([*range(100)] * 10 + [1_000_000])).histogram
    assert bins.edges[-1] < 300 and bins.beyond == 1
    for values in ([0], [7, 7], [10**9]):
        found = distribution(Counter(values))
        assert found.p5 == found.p99 == values[0]
        assert found.histogram.counts == (len(values),)


def test_names_are_counted_exactly_up_to_a_limit_and_nothing_is_lost_from_the_sums():
    counts = NameCounts(2, most=3)
    for name, amount in [("a", 5), ("b", 1), ("a", 2), ("c", 9)]:
        counts.add(name, (1, amount))
    ranking = counts.ranking(1)
    assert [(item.name, item.amounts) for item in ranking.top] == [("a", (2, 7))]
    assert (ranking.other, ranking.distinct, ranking.exact) == ((2, 10), 3, True)
    counts.add("d", (1, 4))
    ranking = counts.ranking(1)
    assert (ranking.other, ranking.distinct, ranking.exact) == ((3, 14), 3, False)
    first, second = clipped("x" * 500 + "a"), clipped("x" * 500 + "b")
    assert first != second and len(first) <= 120 and clipped("short") == "short"


def test_writing_systems():
    for text, script in {
        "Take it twice.": "Latin",
        "患者每天服用": "Han",
        "薬を毎日飲みます": "Japanese",
        "خذ الدواء": "Arabic",
        "Ｆｕｌｌ ｗｉｄｔｈ": "Latin",
        "12 + 30 = 42": "no letters",
        "ok: Принимать дважды в день": "Cyrillic",
    }.items():
        assert main_script([text]) == script


def test_a_recount_by_hand():
    called = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "Погода?"),
        Turn("assistant", "", tool_calls=(called,)),
        Turn("tool", "12 C"),
        Turn("assistant", "Тепло сегодня", weight=0.5),
    )
    tools = ({"type": "function", "function": {"name": "weather"}},)
    stats = counted(
        talk("What is it?", "A cold.", tags={"source": "clinic", "task": "triage", "id": "1"}),
        talk("And now", "Rest well.", "Then?", "Go home.", line=2, tags={"source": "clinic"}),
        Fault("rows.jsonl", 3, "json", "broken"),
        Fault("rows.jsonl", 3, "utf-8", "the same row"),
        Fault("rows.jsonl", 4, "near-duplicate", "only a warning", severity="warning"),
        Conversation(turns, "rows.jsonl:5", tools),
        talk("x", "y", weight=0, line=6),
    )
    assert (stats.rows, stats.rejected, len(stats.faults)) == (4, 1, 2)
    assert (stats.splits["train"].rows, stats.splits["train"].turns) == (4, 13)
    assert stats.splits["train"].tokens is None and stats.tokens is None
    assert (stats.turns.min, stats.turns.p50, stats.turns.max) == (2, 2, 5)
    by_role = {role: found.turns for role, found in stats.roles.items()}
    assert by_role == {"system": 1, "user": 5, "assistant": 6, "tool": 1}
    assert stats.roles["assistant"].characters.sum == 7 + 10 + 8 + 0 + 13 + 1
    assert stats.roles["user"].words.sum == 3 + 2 + 1 + 1 + 1
    assert stats.roles["user"].share == pytest.approx(5 / 13)
    assert first_amounts(stats.sources) == {NO_TAG: 2, "clinic": 2}
    assert first_amounts(stats.tasks) == {"triage": 1, NO_TAG: 3}
    assert set(stats.tags) == {"source", "task", "id"}
    assert dict(stats.scripts) == {"Latin": 3, "Cyrillic": 1}
    assert (stats.tools.rows_offering, stats.tools.rows_calling, stats.tools.calls) == (1, 1, 1)
    assert first_amounts(stats.tools.functions) == {"weather": 1}
    assert (stats.system.rows, stats.system.prompts.top[0].name) == (1, "Be brief.")
    assert (stats.weights.turns, dict(stats.weights.values)) == (2, {"0.5": 1, "0": 1})
    assert stats.weights.rows_all_zero == 1


def test_tokens_are_those_that_training_renders(chat):
    tokenizer = chat("gpt2")
    rows = [talk("Name it " * n, "yes " * (1 + n % 7), tags={"source": "ab"[n % 2]}, line=n)
            for n in range(1, 60)]  # fmt: skip
    stats = counted(*rows, tokenizer=tokenizer, max_length_tokens=100)
    tokens = stats.tokens
    rendered = [render(row, tokenizer) for row in rows]
    lengths = [sum(len(e.input_ids) for e in examples) for examples in rendered]
    learned = [sum(int((e.weights > 0).sum()) for e in examples) for examples in rendered]
    assert (tokens.total, tokens.supervised) == (sum(lengths), sum(learned))
    assert (tokens.per_row.min, tokens.per_row.max) == (min(lengths), max(lengths))
    assert tokens.supervised_share == pytest.approx(sum(learned) / sum(lengths))
    assert tokens.over["512"] == sum(length > 512 for length in lengths)
    assert tokens.limit.rows_over == sum(length > 100 for length in lengths) > 0
    beyond = sum(max(0, length - 100) for length in lengths)
    assert tokens.limit.tokens_beyond_share == pytest.approx(beyond / sum(lengths))
    by_source = {item.name: item.amounts[2] for item in stats.sources.top}
    assert by_source == {"a": sum(lengths[1::2]), "b": sum(lengths[::2])}
    assert stats.splits["train"].supervised_tokens == sum(learned)


def test_rows_with_nothing_to_learn_control_text_or_a_refusal_are_counted_apart(chat):
    tokenizer = chat("gpt2")
    row = talk("a", "one two three", "b", "four")
    others = (talk("a", "b", weight=0, line=2), talk("say <|im_end|> please", "ok", line=3))
    both = counted(row, *others, tokenizer=tokenizer).tokens
    assert (both.nothing_to_learn_rows, both.control_text_rows) == (1, 1)
    last = counted(row, *others, tokenizer=tokenizer, learn="last").tokens
    assert both.supervised > last.supervised > 0
    refusing = (
        "{% for m in messages %}{% if 'tax' in m.content %}{{ raise_exception('no tax advice') }}"
        "{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = chat("gpt2", refusing)
    rows = [talk("hello", "ok"), talk("about tax", "no", line=2), talk("x", "y", line=3)]
    tokens = counted(*rows, tokenizer=tokenizer).tokens
    assert (tokens.per_row.count, tokens.refused_rows) == (2, 1)
    assert "rows.jsonl:2" in tokens.refused[0] and "no tax advice" in tokens.refused[0]
    with pytest.raises(DataError, match="no row can be trained on"):
        counted(rows[1], tokenizer=tokenizer)


def test_padding_is_what_random_batches_would_have():
    rng = np.random.default_rng(3)
    lengths = rng.integers(10, 500, 400)
    expected = padding_shares(Counter(lengths.tolist()), None)
    assert expected["1"] == 0
    for size in (2, 8, 32):
        batches = rng.choice(lengths, (6000, size))
        measured = 1 - batches.sum() / (size * batches.max(axis=1)).sum()
        assert expected[str(size)] == pytest.approx(measured, abs=0.01)
    assert padding_shares(Counter([50, 900]), 50) == dict.fromkeys(expected, 0.0)
