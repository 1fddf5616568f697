"""What a client holds while it copies: a store under way, a hit being read, a pin."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lmcache_mp.client.mapping import Mapping
from lmcache_mp.messages import SLOT_UNIT_BYTES


@dataclass(slots=True)
class Slots:
    """Leased places in the mapping, seen as one shard. Empty where nothing was granted."""

    lease_id: int = 0
    indices: array[int] = field(default_factory=lambda: array("I"))
    """Positions in the keys that were asked for."""
    addresses: array[int] = field(default_factory=lambda: array("I"))
    mapping: Mapping | None = None
    shard_offset: int = 0
    shard_bytes: int = 0
    writable: bool = False
    _views: list[memoryview] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.addresses)

    def views(self) -> Iterator[tuple[int, memoryview]]:
        """`(index, bytes of this shard)` of each slot in turn, until `end_views`."""
        if self.mapping is None:
            return
        whole = self.mapping.writable if self.writable else self.mapping.readable
        for index, address in zip(self.indices, self.addresses, strict=True):
            start = address * SLOT_UNIT_BYTES + self.shard_offset
            view = whole[start : start + self.shard_bytes]
            self._views.append(view)
            yield index, view

    def end_views(self) -> None:
        """Take the views back. (An array made of one lives on; it must not be used any more.)"""
        views = self._views
        while views:
            try:
                while views:
                    views.pop().release()
            except BufferError:
                continue


class StoreBatch:
    """Reserved slots for what is missing of a prompt. Fill them; leaving the `with` commits.

    For copies that end later: `begin_store`, then `commit` or `abort` when they have ended. A batch
    that is dropped without either keeps its slots while the client lives: a device may be copying.
    """

    def __init__(
        self,
        slots: Slots,
        no_room_chunks: int,
        commit: Callable[[Slots, list[int]], int],
        abort: Callable[[int], None],
    ) -> None:
        self._slots = slots
        self._commit = commit
        self._abort = abort
        self._handed_out: dict[int, None] = {}
        self._open = bool(slots)
        self.no_room_chunks = no_room_chunks
        """Missing chunks that no room could be made for."""
        self.committed_chunks = 0
        """After the commit: how many chunks were taken."""

    def __len__(self) -> int:
        """Chunks to be written."""
        return len(self._slots)

    @property
    def indices(self) -> list[int]:
        """Which of the keys are to be written."""
        return self._slots.indices.tolist()

    def slots(self) -> Iterator[tuple[int, memoryview]]:
        """`(index into the keys, writable view of shard_bytes)`, for what is missing only.

        What is handed out is committed, what is not is aborted.
        """
        for position, slot in enumerate(self._slots.views()):
            self._handed_out[position] = None
            yield slot

    def commit(self) -> int:
        """Publish what was handed out; returns how many chunks were taken. Once."""
        if self._open:
            self._open = False
            self._slots.end_views()
            self.committed_chunks = self._commit(self._slots, sorted(self._handed_out))
        return self.committed_chunks

    def abort(self) -> None:
        """Give everything back unpublished."""
        if self._open:
            self._open = False
            self._slots.end_views()
            self._abort(self._slots.lease_id)

    def __enter__(self) -> StoreBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


class RetrieveHit:
    """The longest prefix that was here, held for reading until released."""

    def __init__(
        self, slots: Slots, release: Callable[[int], None], owe: Callable[[int], None]
    ) -> None:
        """`release` gives the lease back now, `owe` with the client's next call."""
        self._slots = slots
        self._release = release
        self._owe = owe
        self._open = bool(slots)

    def __del__(self) -> None:
        if self._open:
            self._owe(self._slots.lease_id)

    @property
    def chunks(self) -> int:
        """How many chunks, from the first on."""
        return len(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def slots(self) -> Iterator[tuple[int, memoryview]]:
        """`(index into the keys, read-only view of shard_bytes)`."""
        return self._slots.views()

    def release(self) -> None:
        """Reading has ended. Once."""
        if self._open:
            self._open = False
            self._slots.end_views()
            self._release(self._slots.lease_id)

    def __enter__(self) -> RetrieveHit:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Pin:
    """Chunks kept from eviction until released, or until this object is dropped."""

    def __init__(
        self,
        lease_id: int,
        chunks: int,
        release: Callable[[int], None],
        owe: Callable[[int], None],
    ) -> None:
        self._lease_id = lease_id
        self._release = release
        self._owe = owe
        self.chunks = chunks
        """How many, from the first on."""

    def __del__(self) -> None:
        if self._lease_id:
            self._owe(self._lease_id)

    def release(self) -> None:
        """Let them go. Idempotent."""
        if self._lease_id:
            lease_id, self._lease_id = self._lease_id, 0
            self._release(lease_id)

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
