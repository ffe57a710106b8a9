"""The pretraining text is reproducible and holds neither instruction nor response."""

from __future__ import annotations

import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the pretraining script needs Python 3.11", allow_module_level=True)

from starter.clinical.tasks import TASKS
from starter.clinical.wordings import wordings
from starter.corpus import CUES, document, documents

TEXTS = list(documents(1, 1500))


def test_a_document_is_a_function_of_seed_and_index() -> None:
    assert [document(1, i) for i in range(50)] == TEXTS[:50]
    assert [document(2, i) for i in range(50)] != TEXTS[:50]


def test_every_task_has_its_synonyms() -> None:
    assert CUES.keys() == {task.name for task in TASKS}


def test_no_document_asks() -> None:
    sentences = {s for ways in wordings().values() for s in (*ways.seen, *ways.unseen)}
    questions = {s for s in sentences if s.endswith("?") and "{" not in s}
    for text in TEXTS:
        assert "### " not in text and "Instruction" not in text and "Response" not in text
        assert not any(question in text for question in questions)
