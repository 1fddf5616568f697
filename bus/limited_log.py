"""A log that peers can make the server write to, and cannot flood."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

LINES = 10
PERIOD_S = 10.0


@dataclass(slots=True)
class _Period:
    began_s: float
    lines: int = 0
    held_back: int = 0


@dataclass(slots=True)
class LimitedLog:
    """Of each sentence at most `LINES` lines in `PERIOD_S`, then one that says how many more."""

    log: logging.Logger
    _periods: dict[str, _Period] = field(default_factory=dict[str, _Period])
    """By sentence, with its placeholders: what peers choose is among the values."""

    def say(self, now_s: float, level: int, sentence: str, *values: object) -> None:
        """Log `sentence % values`, unless there has been enough of it."""
        period = self._periods.setdefault(sentence, _Period(now_s))
        if period.lines < LINES:
            period.lines += 1
            self.log.log(level, sentence, *values)
        else:
            period.held_back += 1

    def look(self, now_s: float) -> None:
        """End the periods that are over. To be called now and then."""
        for sentence, period in list(self._periods.items()):
            if now_s - period.began_s < PERIOD_S:
                continue
            del self._periods[sentence]
            if period.held_back:
                self.log.warning(
                    "%d more in %.0f s: %s", period.held_back, now_s - period.began_s, sentence
                )
