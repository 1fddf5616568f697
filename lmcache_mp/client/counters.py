"""What a client saw."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from lmcache_mp.logging import init_logger

log = init_logger(__name__)


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

    def failed(self, verb: str, fault: Exception) -> None:
        """Count and log a failure; the same one again is no news."""
        self.failures[verb] = self.failures.get(verb, 0) + 1
        why = str(fault)  # not the exception: its traceback would keep what the frames hold
        level = logging.WARNING if why != self.last_failure else logging.DEBUG
        self.last_failure = why
        log.log(level, "%s failed open: %s", verb, why)
