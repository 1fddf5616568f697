"""Which chunk is where: one index per namespace."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

from lmcache_mp import namespace as namespaces
from lmcache_mp.errors import ChunkTooLarge, LimitReached, NamespaceConflict, NotRegistered
from lmcache_mp.l1.allocator import Allocator
from lmcache_mp.l1.slab import SizeClass
from lmcache_mp.l1.slot import Slot
from lmcache_mp.l1.state_file import NAMESPACE_BLOB_BYTES, StateFile
from lmcache_mp.namespace import Namespace


@dataclass(slots=True, eq=False)
class NamespaceEntry:
    """A registered namespace and its chunks by key."""

    id: int
    namespace: Namespace
    size_class: SizeClass
    generation: int = 0
    """Another one after every clear, and for every namespace that has had the id: records of
    slots that say another one are of no account."""
    ready: dict[bytes, Slot] = field(default_factory=dict)
    incomplete: dict[bytes, Slot] = field(default_factory=dict)

    all_shards: int = field(init=False)
    """The bit set of a whole chunk."""
    digest: bytes = field(init=False)
    """Of the namespace."""

    def __post_init__(self) -> None:
        self.digest = self.namespace.digest
        self.all_shards = (1 << self.namespace.num_shards) - 1

    def prefix(self, names: tuple[bytes, ...]) -> list[Slot]:
        """The slots of the keys, from the first on, that are here."""
        return [slot for slot in takewhile(bool, map(self.ready.get, names)) if slot is not None]


@dataclass(slots=True)
class Cleared:
    """What was cleared and not yet swept: dicts that no namespace uses any more.

    Clearing is thereby O(1); the slots are freed a few at a time, or by eviction before that.
    """

    dicts: deque[dict[bytes, Slot]] = field(default_factory=deque)

    def pop(self) -> Slot | None:
        """Some slot that is still in one of the dicts."""
        while self.dicts:
            if self.dicts[0]:
                return self.dicts[0].popitem()[1]
            self.dicts.popleft()
        return None


class Catalogue:
    """The registered namespaces, by the id that stands for them on the bus and in records."""

    def __init__(self, state: StateFile, allocator: Allocator) -> None:
        self._state = state
        self._allocator = allocator
        self._last_id = 0
        self._by_name: dict[Namespace, NamespaceEntry] = {}
        self.entries: dict[int, NamespaceEntry] = {}

    def __getitem__(self, namespace_id: int) -> NamespaceEntry:
        entry = self.entries.get(namespace_id)
        if entry is None:
            raise NotRegistered(
                f"namespace {namespace_id} is not registered here: send register_namespace first",
                namespace_id=namespace_id,
            )
        return entry

    def register(self, namespace: Namespace) -> NamespaceEntry:
        """The entry of a namespace, known or new; what cannot be served is refused by name."""
        namesake = self._by_name.get(namespace.name)
        if namesake is not None and namesake.namespace == namespace:
            return namesake
        self._require_room(namespace)
        if namesake is not None:
            self._require_unused(namesake, namespace)
            self._drop(namesake)
        return self.add(self._free_id(), self._state.next_generation(), namespace)

    def add(self, namespace_id: int, generation: int, namespace: Namespace) -> NamespaceEntry:
        """Record a namespace under an id."""
        blob = namespaces.encode(namespace)
        if len(blob) > NAMESPACE_BLOB_BYTES:
            raise LimitReached(
                f"the namespace's fields take {len(blob)} bytes, its record has"
                f" {NAMESPACE_BLOB_BYTES}: shorten its names",
                limit=NAMESPACE_BLOB_BYTES,
                bytes=len(blob),
            )
        size_class = self._allocator.size_class(namespace.chunk_bytes)
        entry = NamespaceEntry(namespace_id, namespace, size_class, generation)
        self._state.put_namespace(namespace_id, generation, blob)
        size_class.namespaces += 1
        self.entries[namespace_id] = entry
        self._by_name[namespace.name] = entry
        self._last_id = max(self._last_id, namespace_id)
        return entry

    def _require_room(self, namespace: Namespace) -> None:
        room = self._allocator.room_bytes
        if namespace.chunk_bytes > room:
            raise ChunkTooLarge(
                f"one chunk of {namespace.model} is {namespace.chunk_bytes} bytes"
                f" ({namespace.num_shards} shards of {namespace.shard_bytes}), L1 has {room}: raise"
                " --l1-size or lower chunk_tokens",
                chunk_bytes=namespace.chunk_bytes,
                l1_bytes=room,
            )

    def _require_unused(self, entry: NamespaceEntry, by: Namespace) -> None:
        if entry.ready or entry.incomplete:
            raise NamespaceConflict(
                f"namespace {by.model} ({by.dtype}, layout {by.layout!r}) has shards of"
                f" {entry.namespace.shard_bytes} bytes and {len(entry.ready)} chunks here, and was"
                f" registered again with {by.shard_bytes}: clear it first, or name the two layouts"
                " differently",
                shard_bytes=entry.namespace.shard_bytes,
                asked_bytes=by.shard_bytes,
            )

    def _drop(self, entry: NamespaceEntry) -> None:
        """Forget a namespace without chunks. Who still uses its id is told to register again."""
        del self.entries[entry.id]
        del self._by_name[entry.namespace.name]
        self._state.drop_namespace(entry.id)
        entry.size_class.namespaces -= 1
        self._allocator.let_go(entry.size_class)

    def _free_id(self) -> int:
        """An id that has not been used for as long as possible."""
        limit = self._state.geometry.namespaces
        if len(self.entries) == limit:
            unused = (e for e in self.entries.values() if not e.ready and not e.incomplete)
            oldest = next(unused, None)
            if oldest is None:
                raise LimitReached(f"{limit} namespaces have chunks, no more can be", limit=limit)
            self._drop(oldest)
        for step in range(1, limit + 1):
            namespace_id = (self._last_id + step - 1) % limit + 1
            if namespace_id not in self.entries:
                break
        self._last_id = namespace_id
        return namespace_id
