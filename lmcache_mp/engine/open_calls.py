"""Calls that wait for their answer: so many of one client, and forgotten when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from lmcache_mp.errors import BadLease, LimitReached

T = TypeVar("T")


class OpenCalls(Generic[T]):
    """What is needed to answer each call, by who waits (a client's id) and the call's id."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[bytes, dict[int, T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def __iter__(self) -> Iterator[T]:
        for waiting in self._open.values():
            yield from waiting.values()

    def add(self, who: bytes, call_id: int, item: T) -> None:
        """One more; raises `LimitReached`, or `BadLease` if there is one of that id."""
        waiting = self._open.get(who, {})
        if call_id in waiting:
            raise BadLease(
                f"call {call_id} is open already: a call id may be used once", lease_id=call_id
            )
        if len(waiting) >= self._limit:
            raise LimitReached(
                f"{len(waiting)} calls of the client wait for their answer, and {self._limit} may"
                " (max_open_calls): wait for some of them first",
                limit=self._limit,
            )
        waiting[call_id] = item
        self._open[who] = waiting

    def pop(self, who: bytes, call_id: int) -> T | None:
        """The call is answered, or its caller has given up."""
        waiting = self._open.get(who, {})
        item = waiting.pop(call_id, None)
        if not waiting:
            self._open.pop(who, None)
        return item

    def pop_all_of(self, who: bytes) -> list[T]:
        """The client is gone."""
        return list(self._open.pop(who, {}).values())

    def pop_all(self) -> list[T]:
        """All are answered now."""
        everything, self._open = self._open, {}
        return [item for waiting in everything.values() for item in waiting.values()]
