"""How much of a prompt do the adapters have? One question after the other, prefix first."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.tiering.jobs import Ask
from lmcache_mp.tiering.messages import DONE, MAX_WORK, Verb
from lmcache_mp.tiering.outcomes import count
from lmcache_mp.tiering.station import Station

Located = list[tuple[bytes, Station | None]]
"""A prefix of a prompt: each key, and who has it; None: it is in L1."""


class Search:
    """Walks the adapters in order, a window of keys at a time, and ends at the first missing key.

    Calls `then` once, with what was found: at once if all of it is known.
    """

    def __init__(
        self,
        stations: Sequence[Station],
        entry: NamespaceEntry,
        keys: Sequence[bytes],
        then: Callable[[Located], None],
        without: Container[tuple[Station, bytes]] = (),
    ) -> None:
        """`without`: who has failed to give which key already."""
        self._stations = stations
        self._entry = entry
        self._keys = keys
        self._then = then
        self._without = without
        self._at = 0
        """So many of the keys are located."""
        self._located: Located = []
        self._window: dict[bytes, Station | None] = {}
        self._next = 0
        """The station to ask next about the window."""

    def start(self) -> None:
        """Ask."""
        self._window, self._next = {}, 0
        window = self._keys[self._at : self._at + MAX_WORK]
        for key in window:
            if key in self._entry.ready:
                self._window[key] = None
            else:
                station = next((s for s in self._stations if self._may_have(s, key)), None)
                if station is not None:
                    self._window[key] = station
        self._ask(window)

    def _ask(self, window: Sequence[bytes]) -> None:
        missing = list(dict.fromkeys(key for key in window if key not in self._window))
        if not missing or self._next == len(self._stations):
            self._end_window(window)
            return
        station = self._stations[self._next]
        self._next += 1
        missing = [key for key in missing if (station, key) not in self._without]
        if not missing:
            self._ask(window)
            return

        def learn(outcomes: bytes | None) -> None:
            if outcomes is not None:
                found = [k for k, o in zip(missing, outcomes, strict=False) if o == DONE]
                station.known.add(found)
                station.counters.lookup_hit_chunks += len(found)
                self._window.update(dict.fromkeys(found, station))
            failed = len(missing) if outcomes is None else len(missing) - count(outcomes, DONE)
            station.counters.lookup_failed_chunks += failed if outcomes is None else 0
            self._ask(window)

        station.counters.lookup_chunks += len(missing)
        station.ask(Ask(Verb.LOOKUP, self._entry, missing, learn))

    def _may_have(self, station: Station, key: bytes) -> bool:
        return station.is_open and key in station.known and (station, key) not in self._without

    def _end_window(self, window: Sequence[bytes]) -> None:
        for key in window:
            if key not in self._window:
                break
            self._located.append((key, self._window[key]))
        else:
            self._at += len(window)
            if self._at < len(self._keys):
                self.start()
                return
        self._then(self._located)
