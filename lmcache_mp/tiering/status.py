"""How an adapter is doing."""

from __future__ import annotations

from typing import Any

import msgspec


class L2Counters(msgspec.Struct, kw_only=True):
    """Of one adapter, since the engine started. Chunks, unless the name says otherwise."""

    cascaded_chunks: int = 0
    cascaded_bytes: int = 0
    cascade_dropped_chunks: int = 0
    """The queue was full."""
    cascade_late_chunks: int = 0
    """Had left L1 when their turn came."""
    cascade_failed_chunks: int = 0
    loaded_chunks: int = 0
    loaded_bytes: int = 0
    load_absent_chunks: int = 0
    """Were expected there and were not, or not whole."""
    load_failed_chunks: int = 0
    load_refused_chunks: int = 0
    """The queue was full, or L1 had no room."""
    lookup_chunks: int = 0
    """It was asked about."""
    lookup_hit_chunks: int = 0
    lookup_failed_chunks: int = 0

    @property
    def lost_chunks(self) -> int:
        """Chunks that it was to have and has not."""
        late = self.cascade_dropped_chunks + self.cascade_late_chunks
        return late + self.cascade_failed_chunks


class L2Status(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter, as `Status` shows it."""

    name: str
    state: str
    """`starting`, `open`, `failing` or `detaching`."""
    error: str
    spec: dict[str, Any]
    """As it was attached; secrets left out."""
    pid: int
    queued_bytes: int
    queued_loads: int
    counters: L2Counters
    figures: dict[str, int | float]
    """The adapter's own, and its worker's."""
