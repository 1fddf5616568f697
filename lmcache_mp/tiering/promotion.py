"""One caller that waits until L2's part of its prompt is in L1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.tiering.search import Located
from lmcache_mp.tiering.station import Station

if TYPE_CHECKING:
    from lmcache_mp.tiering.tiers import Tiers


MAX_SEARCHES = 8
"""A load that fails costs a question to those who have not failed, and not for ever."""


class Promotion:
    """Searches, loads, and keeps what has arrived until its caller has it.

    It is over when the prompt's longest prefix is here that can be, or its time is up; the loads go
    on then for whoever asks next.
    """

    def __init__(
        self,
        tiers: Tiers,
        entry: NamespaceEntry,
        keys: Sequence[bytes],
        until_s: float,
        then: Callable[[], None],
    ) -> None:
        """`then` is called once, while what has arrived is still kept."""
        self.until_s = until_s
        self._tiers = tiers
        self._entry = entry
        self._keys = keys
        self._then = then
        self._awaited: dict[bytes, int] = {}
        """Keys that are being loaded and waited for, and where they stand in the prompt."""
        self._givers: dict[bytes, Station] = {}
        """From whom keys are being loaded, also those not waited for any more."""
        self._failed: set[tuple[Station, bytes]] = set()
        """Who has failed to give what: it is not asked for that again."""
        self._hold = 0
        """Keeps what has arrived; there is none before the start."""
        self._complete = False
        """All loads that there was room for have been asked for."""
        self._resume_at: int | None = None
        """Where to look again once those have ended: a load failed, or was one too many."""
        self._has_failed = False
        """A load has, since the last search."""
        self._searches_left = MAX_SEARCHES
        self.over = False

    def start(self) -> None:
        """Begin; may be over at once."""
        self._hold = self._tiers.new_hold()
        here = len(self._entry.prefix(tuple(self._keys)))
        self._keep(self._keys[:here])
        self._search(here)

    def end(self) -> None:
        """The caller gets what is here now. Once."""
        if not self.over:
            self.over = True
            try:
                self._then()
            finally:
                self._tiers.let_go(self._hold)

    def cancel(self) -> None:
        """The caller does not want it any more."""
        if not self.over:
            self.over = True
            self._tiers.let_go(self._hold)

    def _search(self, begin: int) -> None:
        """Look for the keys from `begin` on."""
        self._complete, self._resume_at = False, None
        self._tiers.search(
            self._entry,
            self._keys[begin:],
            lambda found: self._found(begin, found),
            self._failed,
        )

    def _found(self, begin: int, located: Located) -> None:
        if self.over:
            return
        stations = []
        for position, (key, station) in enumerate(located, begin):
            if key in self._entry.ready:
                self._keep((key,))
            elif station is None:
                break
            elif not self._tiers.load(self._entry, key, station, self._arrived):
                if self._awaited:  # the queue is full, partly with ours
                    self._resume_at = position
                break
            else:
                self._awaited[key] = position
                self._givers[key] = station
                if station not in stations:
                    stations.append(station)
        self._complete = True
        for station in stations:
            station.start_loads()
        self._end_if_complete()

    def _arrived(self, key: bytes, is_here: bool) -> None:
        giver = self._givers.pop(key, None)
        if not is_here and giver is not None:
            self._failed.add((giver, key))
        position = self._awaited.pop(key, None)
        if self.over or position is None:
            return
        if is_here:
            self._keep((key,))
        else:  # what comes after it is of no use yet
            self._awaited = {k: at for k, at in self._awaited.items() if at < position}
            self._resume_at = position
            self._has_failed = True
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self.over or not self._complete or self._awaited:
            return
        self._searches_left -= self._has_failed
        self._has_failed = False
        if self._resume_at is not None and self._searches_left:
            self._search(self._resume_at)
        else:
            self.end()

    def _keep(self, keys: Sequence[bytes]) -> None:
        self._tiers.keep(self._hold, self._entry, keys)
