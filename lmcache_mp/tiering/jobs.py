"""What an adapter is asked to do, and who is told how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.messages import KEY_BYTES
from lmcache_mp.tiering.messages import Lane, Verb, Work


@dataclass(slots=True, eq=False)
class Ask:
    """A question, or an order, about some keys."""

    verb: Verb
    entry: NamespaceEntry | None
    keys: Sequence[bytes]
    then: Callable[[bytes | None], None]
    """Told the outcomes, a byte for each key; None if nobody can say."""


@dataclass(slots=True, eq=False)
class Load:
    """One chunk on its way from the adapter to L1, and all who wait for it."""

    entry: NamespaceEntry
    key: bytes
    waiters: list[Callable[[bytes, bool], None]] = field(default_factory=list)
    """Told the key, and whether it is a hit now."""
    over: bool = False

    def end(self, arrived: bool) -> None:
        """Tell all who wait. Once."""
        self.over = True
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter(self.key, arrived)


@dataclass(slots=True, eq=False)
class Taken:
    """What a thread of the worker is doing."""

    lane: Lane
    entry: NamespaceEntry | None
    keys: Sequence[bytes]
    ask: Ask | None = None
    loads: Sequence[Load] = ()


def work(
    verb: Verb, entry: NamespaceEntry | None, keys: Sequence[bytes], slots: bytes = b""
) -> Work:
    """The message that gives a worker something to do."""
    namespace = b"" if entry is None else entry.digest
    chunk_bytes = 0 if entry is None else entry.namespace.chunk_bytes
    assert len(slots) in (0, 4 * len(keys))
    assert all(len(key) == KEY_BYTES for key in keys)
    return Work(verb, namespace, chunk_bytes, b"".join(keys), slots)
