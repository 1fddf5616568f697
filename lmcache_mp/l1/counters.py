"""What L1 did since the engine process started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals. Chunks, unless the name says otherwise; a shard counts as its chunk."""

    lookup_chunks: int = 0
    hit_chunks: int = 0
    retrieved_chunks: int = 0
    retrieved_bytes: int = 0
    stored_chunks: int = 0
    stored_bytes: int = 0
    aborted_chunks: int = 0
    no_room_chunks: int = 0
