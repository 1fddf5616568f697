"""Buffers of outcomes, one byte for each key."""

from __future__ import annotations

from array import array


def count(outcomes: bytes, wanted: int) -> int:
    """How many keys had that outcome."""
    return outcomes.count(bytes((wanted,)))


def positions(outcomes: bytes, wanted: int, limit: int) -> bytes:
    """Which ones had it, as `CommitStore.written` has positions; none from `limit` on."""
    chosen = (at for at, outcome in enumerate(outcomes[:limit]) if outcome == wanted)
    return array("I", chosen).tobytes()
