"""When to start again what died. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
WELL_AFTER_S = 10.0
"""Ready that long, a process has left its earlier deaths behind."""
COLD_AFTER_DEATHS = 3


@dataclass(slots=True)
class RestartPolicy:
    """Exponential back-off for one process; the first death after good health costs no delay."""

    deaths_in_a_row: int = 0
    """Deaths since it was last well."""
    deaths_unready: int = 0
    """Deaths since it was last ready."""
    ready_since_s: float | None = None

    def ready(self, now_s: float) -> None:
        """It runs and answers. Saying so again changes nothing."""
        if self.ready_since_s is None:
            self.ready_since_s = now_s
            self.deaths_unready = 0

    def died(self, now_s: float) -> float:
        """It ended unasked; returns the delay after which to start it again."""
        was_ready = self.ready_since_s is not None
        if self.ready_since_s is not None and now_s - self.ready_since_s >= WELL_AFTER_S:
            self.deaths_in_a_row = 0
        self.ready_since_s = None
        self.deaths_in_a_row += 1
        if was_ready and self.deaths_in_a_row == 1:
            return 0.0
        self.deaths_unready += not was_ready
        doublings = min(self.deaths_in_a_row - 1, 32)
        return min(FIRST_DELAY_S * 2.0**doublings, LONGEST_DELAY_S)

    @property
    def start_cold(self) -> bool:
        """Whether what it would adopt is likely what kills it."""
        return self.deaths_unready >= COLD_AFTER_DEATHS
