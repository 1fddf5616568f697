"""The supervisor's conversation with one incarnation of the engine: are you there?

It never waits: each `tick` takes what has arrived and sends what is due.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

import bus
from lmcache_mp.logging import init_logger
from lmcache_mp.messages import Beat, Heartbeat, ProcessInfo

log = init_logger(__name__)

BEAT_S = 1.0
RETRY_S = 0.03
"""How often to look for an engine that does not listen yet, or for an answer that is due."""
CONNECT_TIMEOUT_S = 0.1
"""Bounds the one thing that blocks: a socket that accepts and then says nothing."""
LONGEST_TICK_S = BEAT_S
"""Ticks further apart mean that this process stood still, and the engine probably too."""


class Pulse:
    """One incarnation's heartbeat, about every second, and at once when the table changed."""

    def __init__(self, address: str, now_s: float) -> None:
        self.answered = False
        self.silent_s = 0.0
        """Since its last answer or its start, not counting time in which nobody listened."""
        self.wanted: list[str] | None = None
        """The L2 adapters that the engine wants workers for, once it has said so."""
        self._address = address
        self._last_tick_s = now_s
        self._due_s = now_s
        self._told: dict[str, ProcessInfo] = {}
        self._client: bus.Client | None = None
        self._pending: bus.PendingCall[Beat] | None = None

    def tick(self, now_s: float, processes: Mapping[str, ProcessInfo]) -> None:
        """Take the answer if it has come; send the table of processes if that is due."""
        self.silent_s += min(now_s - self._last_tick_s, LONGEST_TICK_S)
        self._last_tick_s = now_s
        try:
            if self._pending is not None:
                self._collect()
            if self._pending is None and (now_s >= self._due_s or self._has_news(processes)):
                self._send(processes)
                self._due_s = now_s + BEAT_S
        except bus.Unavailable:  # not there yet, or not any more
            self.close()
            self._due_s = now_s + RETRY_S

    def next_tick_s(self, now_s: float) -> float:
        """When to tick again."""
        return now_s + RETRY_S if self._pending is not None else self._due_s

    def close(self) -> None:
        """Drop the connection."""
        self._pending = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def _send(self, processes: Mapping[str, ProcessInfo]) -> None:
        if self._client is None:
            self._client = bus.Client(self._address, connect_timeout_s=CONNECT_TIMEOUT_S)
        if not self._client.connected:
            raise bus.Unavailable(f"the connection to {self._address} broke")
        self._pending = self._client.start(Heartbeat(processes=dict(processes)))
        self._told = _without_uptime(processes)

    def _has_news(self, processes: Mapping[str, ProcessInfo]) -> bool:
        return self._client is not None and _without_uptime(processes) != self._told

    def _collect(self) -> None:
        assert self._pending is not None
        if not self._pending.done():
            return
        pending, self._pending = self._pending, None
        try:
            self.wanted = pending.result().l2
        except bus.CallError as error:  # an answer nevertheless: its loop runs
            log.warning("engine refused a heartbeat: %s", error)
        self.answered = True
        self.silent_s = 0.0


def _without_uptime(processes: Mapping[str, ProcessInfo]) -> dict[str, ProcessInfo]:
    return {name: replace(info, uptime_s=0.0) for name, info in processes.items()}
