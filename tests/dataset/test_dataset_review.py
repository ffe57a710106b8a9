"""Drafts are no rows until somebody accepts them; data sets beside each other."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.drafts.review import Review
from mlx_itune.kit.errors import DataError, UsageError
from tests.dataset.data_command import DataRun


def draft(n: int, **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"What is {n} + 1?"},
        {"role": "assistant", "content": f"It is {n + 1}."},
    ]
    made = {"kind": "draft", "id": f"d-{n:012x}", "messages": messages, "passage": f"p-{n:012x}"}
    return {**made, "source": "sums.pdf", "recipe": "question-answer", "doubt": n / 100, **more}


@pytest.fixture
def drafts(run: DataRun) -> Path:
    (run.home / "drafts").mkdir()
    return run.write("drafts/drafts.jsonl", [draft(n) for n in range(60)]).parent


def ids(numbers: range) -> list[str]:
    return [f"d-{n:012x}" for n in numbers]


def test_drafts_are_no_rows_until_they_are_accepted(run: DataRun, drafts: Path) -> None:
    for command in (
        ("import", drafts),
        ("check", drafts / "drafts.jsonl"),
        ("show", drafts, "--model", "starter"),
    ):
        told = run.told(*command, out="refused" if command[0] == "import" else None, code=3)
        assert "a draft, which nobody has accepted yet" in told
    mine = [
        f"--decide={id}={'reject' if n % 5 == 0 else 'accept'}"
        for n, id in enumerate(ids(range(20)))
    ]
    state = run("review", drafts, *mine, "--by", "ann")
    assert {k: state[k] for k in ("drafts", "accepted", "rejected", "pending")} == {
        "drafts": 60, "accepted": 16, "rejected": 4, "pending": 40,
    }  # fmt: skip
    # Another reviewer sees it otherwise once; the last decision counts.
    other = [f"--decide={id}=accept" for id in ids(range(10))]
    (agreed,) = run("review", drafts, *other, "--by", "ben")["agreement"]
    assert agreed["drafts"] == 10 and agreed["share"] == 0.8 and agreed["kappa"] == 0
    made = run("review", drafts, "--by", "ben", out="data")
    assert made["accepted"] == 18 and made["rejected"] == 2
    rows = run.rows("data")
    assert len(rows) == 18 and rows[0]["messages"] == draft(0)["messages"]
    assert (
        rows[1] | {"draft": ids(range(2))[1], "document": "sums.pdf", "reviewer": "ben"} == rows[1]
    )
    assert len(run.rows("data", "removed")) == 2
    assert run.trace("data", "train:2")["file"] == "drafts.jsonl"
    run("check", run.home / "data")


def test_a_sample_speaks_for_the_rest_with_an_interval(drafts: Path) -> None:
    review = Review(drafts, "ann")
    doubtful = [each.doubt for each in review.pending()]
    assert doubtful == sorted(doubtful, reverse=True)
    with pytest.raises(DataError, match="10 are needed"):
        review.accept_rest(1.0)
    sample = review.pending(sample=20, seed=1)
    assert sample == Review(drafts).pending(sample=20, seed=1) and len(sample) == 20
    for n, each in enumerate(sample):
        review.decide(each.id, "accept" if n else "reject", sample=True)
    found = Review(drafts, "ann").accept_rest(1.0)
    # Wilson's interval of 19 of 20.
    assert (found.good, found.sampled, found.pending) == (19, 20, 40)
    assert found.low == pytest.approx(0.7639, abs=1e-4)
    assert found.high == pytest.approx(0.9911, abs=1e-4)
    again = Review(drafts)
    assert again.state().accepted == 59 and again.state().rejected == 1
    assert any("19 of 20 sampled" in str(each.reason) for each in again.decided.values())
    with pytest.raises(UsageError, match="no draft"):
        again.decide("d-x", "accept")
    with pytest.raises(DataError):
        again.decide(sample[0].id, "edit", messages=[{"role": "user", "content": "?"}])


def test_a_decision_that_was_cut_by_a_crash_spoils_no_other(drafts: Path) -> None:
    Review(drafts, "ann").decide(ids(range(3))[2], "accept")
    with (drafts / "decisions.jsonl").open("a") as log:
        log.write('{"id": "d-0000')
    review = Review(drafts, "ann")
    assert review.state().accepted == 1
    review.decide(ids(range(3))[1], "reject")
    with pytest.raises(DataError, match=r"decisions\.jsonl:2"):
        Review(drafts)


def test_one_key_decides(drafts: Path) -> None:
    (drafts / "drafts.jsonl").write_text("".join(json.dumps(draft(n)) + "\n" for n in range(4)))
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        argv = [sys.executable, "-m", "mlx_itune", "data", "review", str(drafts), "--by", "ann"]
        os.execv(argv[0], argv)
    said, keys = b"", b"asbrq"
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if select.select([terminal], [], [], 0.3)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:
                break
        elif shown := said.count(b"[q]uit"):
            # It waits: for the key to what it showed last.
            os.write(terminal, keys[shown - 1 : shown])
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    state = Review(drafts).state()
    assert (state.accepted, state.rejected, state.pending) == (1, 1, 2), said.decode()


def test_data_sets_beside_each_other(run: DataRun) -> None:
    def row(n: int, answer: str) -> dict[str, str]:
        return {"instruction": f"Question {n}", "output": answer}

    first = [row(n, f"answer {n}") for n in range(30)]
    run.write("a.jsonl", first)
    run("import", run.home / "a.jsonl", out="a")
    second = [*first[2:], row(0, "another answer"), row(99, "new"), row(99, "new")]
    run.write("b.jsonl", second)
    found = run("diff", run.home / "a", run.home / "b.jsonl")
    counts = {k: found[k] for k in ("same", "moved", "edited", "removed", "added")}
    assert counts == {"same": 28, "moved": 0, "edited": 1, "removed": 1, "added": 2}
    told = run.told("diff", run.home / "a", run.home / "b.jsonl")
    assert "- answer 0" in told and "+ another answer" in told and "Question 99" in told
    cut = run("split", run.home / "a", "--split", "0.5/0.25/0.25", out="cut")
    assert sum(cut["splits"].values()) == 30 and len(cut["splits"]) == 3
    moved = run("diff", run.home / "a", run.home / "cut")
    assert moved["same"] == 30 and moved["moved"] == 30 - cut["splits"]["train"]
    steps = run("versions", run.home / "cut", run.home / "a")["versions"]
    assert [(s["command"], Path(s["folder"]).name) for s in steps] == [
        ("import", "a"),
        ("import", "cut"),
    ]
    assert steps[1]["of"] == [steps[0]["seal"]]
    assert steps[0]["seal"][:8] in run.told("versions", run.home / "cut")
