"""What a client saw."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """What a client saw. Failures are those that were answered as a miss or a skipped store."""

    lookup_chunks: int = 0
    hit_chunks: int = 0
    retrieved_chunks: int = 0
    stored_chunks: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """By verb."""
    last_failure: str = ""
