"""Which chunks the server owes: those whose commit was answered, until somebody has them forgotten.

Pure. Every fact is an interval between question and answer: the server acted at some moment of it,
nobody knows at which. A chunk is lost only if it is, whichever moments those were: all its shards'
commits were answered before the question that missed it was asked, and no clear or delete lies
anywhere between the first of those commits and that question's answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

import msgspec

from benchmarks.chaos_log import Missed
from lmcache_mp.messages import KEY_BYTES

Interval = tuple[float, float]


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A broken promise."""

    key: str
    place: int
    promised_s: float
    missed_s: float
    by: str
    """What promised it."""


class Intervals:
    """When something was, or may have been, done."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        self._sorted = sorted(intervals)
        self._begins = [begin for begin, _ in self._sorted]
        self._latest_end = list(accumulate((end for _, end in self._sorted), max))

    def touch(self, begin_s: float, end_s: float) -> bool:
        """Whether one of them has a moment in common with [begin_s, end_s]."""
        earlier = bisect_right(self._begins, end_s)
        return earlier > 0 and self._latest_end[earlier - 1] >= begin_s


class Promises:
    """What was promised, taken back and missed. Facts may come in any order."""

    def __init__(self, shards: Iterable[int]) -> None:
        """`shards` of a chunk, for each place."""
        self._shards = list(shards)
        self._commits: dict[tuple[bytes, int], list[Interval]] = defaultdict(list)
        """By key and shard, as `(answered, asked)`."""
        self._deletes: dict[bytes, list[Interval]] = defaultdict(list)
        self._clears: dict[int, list[Interval]] = defaultdict(list)
        self._misses: list[Missed] = []

    def committed(self, keys: bytes, shard: int, asked_s: float, answered_s: float) -> None:
        """A commit took all of these."""
        for key in _split(keys):
            self._commits[key, shard].append((answered_s, asked_s))

    def deleted(self, keys: bytes, from_s: float, to_s: float) -> None:
        """These were deleted at some moment then, perhaps."""
        for key in _split(keys):
            self._deletes[key].append((from_s, to_s))

    def cleared(self, place: int, from_s: float, to_s: float) -> None:
        """So was all of a namespace."""
        self._clears[place].append((from_s, to_s))

    def missed(self, miss: Missed) -> None:
        """A chunk was not there."""
        self._misses.append(miss)

    def lost(self, *, evicts: bool) -> list[Lost]:
        """The promises that were broken. Where L1 `evicts`, only pins promise anything."""
        clears = {place: Intervals(self._clears[place]) for place in range(len(self._shards))}
        deletes = {key: Intervals(intervals) for key, intervals in self._deletes.items()}
        commits = {name: sorted(intervals) for name, intervals in self._commits.items()}
        found = []
        for miss in self._misses:
            by, since_s = "pin", miss.pinned_s
            if since_s is None and not evicts:
                by, since_s = "commit", self._owed_since(commits, miss)
            if since_s is None or clears[miss.place].touch(since_s, miss.answered_s):
                continue
            if miss.key in deletes and deletes[miss.key].touch(since_s, miss.answered_s):
                continue
            found.append(
                Lost(
                    key=miss.key.hex()[:16],
                    place=miss.place,
                    promised_s=since_s,
                    missed_s=miss.asked_s,
                    by=by,
                )
            )
        return found

    def _owed_since(
        self, commits: dict[tuple[bytes, int], list[Interval]], miss: Missed
    ) -> float | None:
        """When the first of the last commits of all shards was asked for."""
        asked = []
        for shard in range(self._shards[miss.place]):
            answered = commits.get((miss.key, shard), [])
            before = bisect_right(answered, (miss.asked_s, float("inf")))
            if not before:
                return None
            asked.append(answered[before - 1][1])
        return min(asked)


def _split(keys: bytes) -> Iterable[bytes]:
    return (keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES))
