"""One caller that waits until L2's part of its prompt is in L1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.tiering.search import Located

if TYPE_CHECKING:
    from lmcache_mp.tiering.tiers import Tiers


MAX_SEARCHES = 3
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
        """Keys that are being loaded, and where they stand in the prompt."""
        self._kept: list[int] = []
        self._complete = False
        """All loads have been asked for."""
        self._failed_at: int | None = None
        """Where the first load failed; another adapter may have the chunk."""
        self._searches_left = MAX_SEARCHES
        self.over = False

    def start(self) -> None:
        """Begin; may be over at once."""
        here = len(self._entry.prefix(tuple(self._keys)))
        self._keep(self._keys[:here])
        self._search(here)

    def end(self) -> None:
        """The caller gets what is here now. Once."""
        if not self.over:
            self.over = True
            self._then()
            self._tiers.let_go(self._kept)

    def cancel(self) -> None:
        """The caller does not want it any more."""
        if not self.over:
            self.over = True
            self._tiers.let_go(self._kept)

    def _search(self, begin: int) -> None:
        """Look for the keys from `begin` on."""
        self._searches_left -= 1
        self._complete, self._failed_at = False, None
        self._tiers.search(self._entry, self._keys[begin:], lambda found: self._found(begin, found))

    def _found(self, begin: int, located: Located) -> None:
        if self.over:
            return
        stations = []
        for position, (key, station) in enumerate(located, begin):
            if key in self._entry.ready:
                self._keep((key,))
            elif station is None or not self._tiers.load(self._entry, key, station, self._arrived):
                break
            else:
                self._awaited[key] = position
                if station not in stations:
                    stations.append(station)
        self._complete = True
        for station in stations:
            station.start_loads()
        self._end_if_complete()

    def _arrived(self, key: bytes, is_here: bool) -> None:
        position = self._awaited.pop(key, None)
        if self.over or position is None:
            return
        if is_here:
            self._keep((key,))
        else:  # what comes after it is of no use
            self._awaited = {k: at for k, at in self._awaited.items() if at < position}
            self._failed_at = position
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if not self._complete or self._awaited:
            return
        if self._failed_at is not None and self._searches_left:
            self._search(self._failed_at)
        else:
            self.end()

    def _keep(self, keys: Sequence[bytes]) -> None:
        self._kept += self._tiers.keep(self._entry, keys)
