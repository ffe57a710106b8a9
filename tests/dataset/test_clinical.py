"""The sample data: reproducible, answerable from the note, and fair in its splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mlx_itune.dataset.clinical import rows, write_dataset
from mlx_itune.dataset.clinical.notes import FIELDS, write_note
from mlx_itune.dataset.clinical.record import Dice, new_record
from mlx_itune.dataset.clinical.tasks import TASKS
from mlx_itune.dataset.clinical.wordings import wordings
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.sources import load_splits, read_rows

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data"
# Read from the note in other words than it uses.
DERIVED = {"age_sex", "triage", "smoking", "summary", "vitals_json", "allergies"}


def asked(row: dict[str, object]) -> tuple[str, str, str]:
    """(instruction, note, answer) of a row."""
    _, user, reply = (message["content"] for message in row["messages"])  # type: ignore[attr-defined]
    instruction, note = user.split("\n\nNote:\n", 1)
    return instruction, note, reply


def test_a_row_depends_on_seed_split_and_index_alone() -> None:
    few, many = list(rows("train", 40, seed=3)), list(rows("train", 60, seed=3))
    assert many[:40] == few
    assert list(rows("train", 40, seed=4)) != few
    assert {asked(r)[1] for r in few}.isdisjoint(asked(r)[1] for r in rows("test", 40, seed=3))


def test_tasks_go_round_and_there_are_twenty() -> None:
    counts = Counter(row["task"] for row in rows("test", 100, seed=0))
    assert len(counts) == 20 and set(counts.values()) == {5}


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_copied_answers_stand_in_the_note_or_the_instruction(split: str) -> None:
    for row in rows(split, 1000, seed=5):
        instruction, note, answer = asked(row)
        if row["task"] in DERIVED:
            continue
        source = f"{instruction}\n{note}"
        for line in answer.splitlines():
            for part in line.removeprefix("- ").split(", "):
                assert part in source, (row["task"], part, source)


def test_no_wording_of_the_unseen_split_is_ever_trained() -> None:
    assert wordings().keys() == {task.name for task in TASKS}
    for ways in wordings().values():
        assert len(set(ways.seen)) >= 10 and len(set(ways.unseen)) == 4
        assert not set(ways.seen) & set(ways.unseen)


def test_a_note_holds_what_is_needed_in_every_layout() -> None:
    for index in range(400):
        dice = Dice(f"layout/{index}")
        record = new_record(dice)
        field = FIELDS[index % len(FIELDS)]
        note = write_note(record, [field], dice)
        if field == "medications":
            assert all(" ".join(m) in note for m in record.medications)
        if field == "follow_up":
            assert record.follow_up in note


def test_the_written_folder_is_a_data_set(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "clinic", seed=1, train=40, valid=20, test=20, unseen=20)
    splits = load_splits(out)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (40, 20, 20)
    assert splits.test[0].tags["task"] == "medications"
    assert len((out / "unseen.jsonl").read_text(encoding="utf-8").splitlines()) == 20


def test_every_sample_file_holds_the_same_twenty_rows() -> None:
    files = sorted(p for p in SAMPLES.iterdir() if p.suffix in (".json", ".jsonl"))
    assert len(files) == 5
    answers = []
    for path in files:
        found = list(read_rows(path))
        assert len(found) == 20 and all(isinstance(row, Conversation) for row in found), path
        answers.append([row.turns[-1].content for row in found])  # type: ignore[union-attr]
    assert all(other == answers[0] for other in answers)
    first = json.loads((SAMPLES / "messages.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first == next(rows("sample", 1, seed=11))
