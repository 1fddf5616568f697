"""What a server does per second: the difference of two reports."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache_mp.messages import StatusReport


@dataclass(frozen=True, slots=True)
class Rates:
    """Each per second."""

    lookup_chunks: float
    hit_chunks: float
    stored_bytes: float
    retrieved_bytes: float
    messages: float

    @classmethod
    def between(cls, before: StatusReport, after: StatusReport) -> Rates | None:
        """None if the engine was another one, whose counters began anew, or no time has passed."""
        seconds = after.uptime_s - before.uptime_s  # by the engine's own clock
        if before.epoch != after.epoch or seconds <= 0:
            return None
        old, new = before.counters, after.counters
        return cls(
            lookup_chunks=(new.lookup_chunks - old.lookup_chunks) / seconds,
            hit_chunks=(new.hit_chunks - old.hit_chunks) / seconds,
            stored_bytes=(new.stored_bytes - old.stored_bytes) / seconds,
            retrieved_bytes=(new.retrieved_bytes - old.retrieved_bytes) / seconds,
            messages=(after.bus.messages - before.bus.messages) / seconds,
        )
