"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts, sizes and times of one run of all figures: about two minutes."""

    rounds: int = 20
    """Of floor and subject in turn, where a call is short."""
    calls: int = 50
    """Of each of them in a round."""
    l1_bytes: int = 64 << 20
    """Of round trips and mixed load; in chunks of 4 KiB."""
    copied_bytes: int = 1 << 30
    copies: int = 5
    index_chunks: int = 1_000_000
    small_index_chunks: int = 10_000
    fill_s: float = 45.0
    """An index that is not full by then stays smaller."""
    started_l1_bytes: int = 4 << 30
    starts: int = 5
    settle_s: float = 2.0
    """How long a server idles before its memory is looked at."""
    crowd_s: float = 2.0
    crowds: int = 3


def quick(effort: Effort) -> Effort:
    """Enough to see that everything runs, far too little to measure anything."""
    return replace(
        effort,
        rounds=1,
        calls=2,
        l1_bytes=4 << 20,
        copied_bytes=16 << 20,
        copies=1,
        index_chunks=1_024,
        small_index_chunks=256,
        started_l1_bytes=16 << 20,
        starts=1,
        settle_s=0.0,
        crowd_s=0.1,
        crowds=1,
    )
