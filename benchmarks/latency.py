"""Percentiles of measured times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    if not ascending:
        raise ValueError("no values have no percentiles")
    rank = math.ceil(percent / 100 * len(ascending) - 1e-9)  # 99.9 / 100 * 1000 is 999.0000...1
    return ascending[max(rank, 1) - 1]


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution of so many times, in milliseconds; None where nothing was measured."""

    count: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency:
        """The distribution of the given times."""
        ascending = sorted(seconds)
        if not ascending:
            return cls(count=0)
        at = {name: percentile(ascending, p) for name, p in (("50", 50), ("99", 99), ("999", 99.9))}
        return cls(
            count=len(ascending),
            p50_ms=round(at["50"] * 1e3, 4),
            p99_ms=round(at["99"] * 1e3, 4),
            p999_ms=round(at["999"] * 1e3, 4),
            max_ms=round(ascending[-1] * 1e3, 4),
        )
