"""The sample data: reproducible, answerable from the note, fair in its splits, and as shipped."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.sample_data import SIZES, write_sample
from mlx_itune.dataset.sources import load_splits, read_rows
from mlx_itune.kit.errors import UsageError
from starter.clinical.notes import FIELDS, write_note
from starter.clinical.record import Dice, new_record
from starter.clinical.rows import SHIPPED_SEED, rows
from starter.clinical.tasks import TASKS
from starter.clinical.wordings import wordings

SAMPLES = Path(__file__).resolve().parents[2] / "data"
# Read from the note in other words than it uses.
DERIVED = {"age_sex", "triage", "smoking", "summary", "vitals_json", "allergies"}


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_what_is_shipped_is_what_the_generator_writes(tmp_path):
    folder = write_sample(tmp_path / "clinic")
    for split, count in SIZES.items():
        written = lines(folder / f"{split}.jsonl")
        assert len(written) == len(set(written)) == count
        tasks = Counter(json.loads(line)["task"] for line in written)
        assert tasks == {task.name: count // len(TASKS) for task in TASKS}
        first = [json.dumps(r, ensure_ascii=False) for r in rows(split, 100, seed=SHIPPED_SEED)]
        assert written[:100] == first
    assert len(load_splits(folder).train) == SIZES["train"]


def test_another_seed_takes_other_rows_and_as_many_of_each_task(tmp_path):
    few = {"train": 40, "test": 20}
    one, other, again = (
        lines(write_sample(tmp_path / f"{n}", seed=seed, sizes=few) / "train.jsonl")
        for n, seed in enumerate((0, 1, 1))
    )
    assert other == again and not set(one) & set(other)
    assert set(Counter(json.loads(line)["task"] for line in other).values()) == {2}
    with pytest.raises(UsageError, match="8,000 train rows, not 8,001"):
        write_sample(tmp_path / "many", sizes={"train": 8001})


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_copied_answers_stand_in_the_note_or_the_instruction(split):
    for row in rows(split, 1000, seed=5):
        _, user, reply = (message["content"] for message in row["messages"])
        parts = [p for line in reply.splitlines() for p in line.removeprefix("- ").split(", ")]
        assert row["task"] in DERIVED or all(part in user for part in parts), row


def test_no_wording_of_the_unseen_split_is_ever_trained():
    assert wordings().keys() == {task.name for task in TASKS}
    for ways in wordings().values():
        assert len(set(ways.seen)) >= 10 and len(set(ways.unseen)) == 4
        assert not set(ways.seen) & set(ways.unseen)


def test_a_note_holds_what_is_needed_in_every_layout():
    for index in range(400):
        dice = Dice(f"layout/{index}")
        record = new_record(dice)
        field = FIELDS[index % len(FIELDS)]
        note = write_note(record, [field], dice)
        if field == "medications":
            assert all(" ".join(m) in note for m in record.medications)
        if field == "follow_up":
            assert record.follow_up in note


def test_every_sample_file_holds_the_same_twenty_rows():
    files = sorted(p for p in SAMPLES.iterdir() if p.suffix in (".json", ".jsonl"))
    read = [list(read_rows(path)) for path in files]
    assert len(read) == 5
    assert all(
        len(found) == 20 and isinstance(row, Conversation) for found in read for row in found
    )
    assert len({tuple(row.turns[-1].content for row in found) for found in read}) == 1
    first = json.loads(lines(SAMPLES / "messages.jsonl")[0])
    assert first == next(rows("sample", 1, seed=11))
