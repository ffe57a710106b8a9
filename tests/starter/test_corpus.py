"""The pretraining text is reproducible and holds neither instruction nor response."""

import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the pretraining script needs Python 3.11", allow_module_level=True)

from starter.clinical.tasks import TASKS
from starter.clinical.wordings import wordings
from starter.corpus import CUES, document, documents


def test_documents_are_functions_of_seed_and_index_and_none_asks():
    assert CUES.keys() == {task.name for task in TASKS}
    texts = list(documents(1, 1500))
    assert [document(1, i) for i in range(50)] == texts[:50]
    assert [document(2, i) for i in range(50)] != texts[:50]
    sentences = {s for ways in wordings().values() for s in (*ways.seen, *ways.unseen)}
    questions = {s for s in sentences if s.endswith("?") and "{" not in s}
    for text in texts:
        asks = ("### ", "Instruction", "Response", *questions)
        assert not any(words in text for words in asks)
