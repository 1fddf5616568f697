"""How much is measured."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts, sizes and times of one run of all figures: some four minutes, most of them disk."""

    rounds: int = 7
    """Of floor and subject in turn."""
    directory: Path = Path(tempfile.gettempdir())
    """On the filesystem that is measured; all that is made there is removed."""
    chunk_sizes: tuple[int, ...] = (MIB, 4 * MIB, 16 * MIB)
    remote_chunk_sizes: tuple[int, ...] = (MIB, 4 * MIB)
    """Of Redis and S3."""
    batch_bytes: int = 256 * MIB
    """Moved in a turn, by `threads` threads, whatever a chunk's size."""
    remote_batch_bytes: int = 64 * MIB
    threads: int = 4
    """As many as an adapter has by default for each direction."""
    busy_l1_bytes: int = 256 * MIB
    busy_s: float = 15.0
    """How long calls are made beside a busy L2."""
    busy_calls: int = 10
    """Of each kind in turn."""
    objects: int = 100_000
    starts: int = 3


def quick(effort: Effort) -> Effort:
    """Enough to see that everything runs, far too little to measure anything."""
    return replace(
        effort,
        rounds=1,
        chunk_sizes=(MIB,),
        remote_chunk_sizes=(MIB,),
        batch_bytes=8 * MIB,
        remote_batch_bytes=4 * MIB,
        busy_l1_bytes=64 * MIB,
        busy_s=0.5,
        objects=500,
        starts=1,
    )
