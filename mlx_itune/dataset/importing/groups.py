"""Rows that must stay on one side of a split: equal ones, and those of one group."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

from mlx_itune.dataset.conversation import Conversation

FIRST_TURN = "first-turn"
_PARTS = 16
_PART = (1 << 64) // _PARTS


def group_of(conversation: Conversation, group_by: str) -> bytes | None:
    """What a row is grouped under: the value of a tag, or its first question; None without one.

    `first-turn` folds case and white space, so that the same question asked twice is one group.
    """
    if group_by != FIRST_TURN:
        value = conversation.tags.get(group_by)
        return None if value is None else value.encode("utf-8", "surrogatepass")
    for turn in conversation.turns:
        if turn.role == "user":
            return " ".join(turn.content.casefold().split()).encode("utf-8", "surrogatepass")
    return None


def short_hash(value: bytes) -> int:
    """64 bits of a group's value."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big")


class Groups:
    """Groups, and which of them have to be joined because equal rows occur in several.

    `see` takes every row once (16 bytes are kept per row); `root` answers after `join`.
    """

    def __init__(self) -> None:
        self._contents = array("Q")
        self._groups = array("Q")
        self._root: dict[int, int] = {}

    def see(self, content: int, group: int) -> None:
        """A row with this content hash is in this group."""
        self._contents.append(content)
        self._groups.append(group)

    def join(self) -> int:
        """Join groups that share a row; returns how many groups were joined to another."""
        contents = np.frombuffer(self._contents, dtype=np.uint64)
        groups = np.frombuffer(self._groups, dtype=np.uint64)
        # Part by part, so that sorting needs a fraction of the memory that the rows do.
        for part in range(_PARTS):
            low, high = part * _PART, part * _PART + (_PART - 1)
            chosen = np.flatnonzero((contents >= np.uint64(low)) & (contents <= np.uint64(high)))
            content, group = contents[chosen], groups[chosen]
            order = np.lexsort((group, content))
            content, group = content[order], group[order]
            linked = (content[1:] == content[:-1]) & (group[1:] != group[:-1])
            for at in np.flatnonzero(linked).tolist():
                self._unite(int(group[at]), int(group[at + 1]))
        del contents, groups
        self._contents, self._groups = array("Q"), array("Q")
        return sum(self.root(group) != group for group in self._root)

    def root(self, group: int) -> int:
        """The smallest group among those joined with `group`."""
        while (above := self._root.get(group, group)) != group:
            self._root[group] = self._root.get(above, above)
            group = above
        return group

    def _unite(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._root[high] = low
        self._root.setdefault(low, low)
