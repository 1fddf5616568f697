"""All adapters of a server, in the order in which they are asked, around one L1."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Sequence

from lmcache_mp.errors import NoSuchAdapter
from lmcache_mp.l1.index import NamespaceEntry
from lmcache_mp.l1.lease import Owner
from lmcache_mp.l1.slot import READY, Slot
from lmcache_mp.l1.tier import L1
from lmcache_mp.tiering.jobs import Ask, Load
from lmcache_mp.tiering.known import Known
from lmcache_mp.tiering.messages import MAX_WORK, Verb
from lmcache_mp.tiering.promotion import Promotion
from lmcache_mp.tiering.search import Located, Search
from lmcache_mp.tiering.spec import AdapterSpec
from lmcache_mp.tiering.station import OnWork, Station

FORGET_ABSENCE_S = 1.0
"""How long nobody is asked again about a prompt that went no further."""

OFFERED_AT_ONCE = 512
"""Chunks of an earlier life that are queued in one tick."""

RESERVE_SHARE = 1 / 8
"""Of a size class's chunks: so many of those to be evicted next are cascaded ahead of it, to
adapters that take what is evicted."""
MAX_RESERVE = 4096
COLDEST_EVERY_S = 0.5


class Tiers:
    """See the module. Not thread-safe; time is passed in."""

    def __init__(self, l1: L1, on_work: OnWork) -> None:
        """`on_work` is told that a station has work in a lane."""
        self.stations: dict[str, Station] = {}
        self._l1 = l1
        self._on_work = on_work
        self._loads: dict[tuple[int, bytes], Load] = {}
        self._promotions: list[Promotion] = []
        self._keeper = Owner(b"the promotions'")
        self._keeping = itertools.count(1)
        self._searched: set[bytes] = set()
        """First keys of what adapters are just being asked about for nobody in particular."""
        self._absent = Known(8192)
        self._absent_until_s = 0.0
        self._look_at_coldest_s = 0.0
        self._source: Station | None = None
        """Where the chunks come from that are just being published."""

    @property
    def asked(self) -> list[Station]:
        """Those that can be asked now, in order."""
        return [station for station in self.stations.values() if station.is_open]

    @property
    def storing(self) -> bool:
        """Whether chunks are on their way to an adapter."""
        return any(station.storing for station in self.stations.values())

    # --- adapters ---

    def find(self, name: str) -> Station:
        """The adapter of that name, or `NoSuchAdapter`."""
        station = self.stations.get(name)
        if station is None:
            known = ", ".join(self.stations) or "none"
            raise NoSuchAdapter(f"no adapter {name!r}: attached are {known}")
        return station

    def add(self, name: str, spec: AdapterSpec) -> Station:
        """One more adapter, which its worker is to open."""
        station = self.stations[name] = Station(spec, name, self._l1, self._on_work)
        self._l1.reservations.on_ready = self._published
        self._l1.ledger.owners[self._keeper.id] = self._keeper
        return station

    def remove(self, station: Station) -> None:
        """It is used no more."""
        del self.stations[station.name]
        station.close()

    def opened(self, station: Station) -> None:
        """It can be used: what is in L1 already is offered to it, in the background."""
        if station.spec.common.cascade == "commit":
            station.missing = _ready_slots(self._l1)

    def worker_gone(self, owner: Owner) -> None:
        """A client has ended; it may have been a worker."""
        for station in self.stations.values():
            station.worker_gone(owner)

    def done(
        self, station: Station, owner: Owner, work_id: int, outcomes: bytes, now_s: float
    ) -> None:
        """A piece of work of this station has ended."""
        self._source = station
        try:
            station.done(owner, work_id, outcomes, now_s)
        finally:
            self._source = None

    # --- reading ---

    def further(
        self, entry: NamespaceEntry, keys: Sequence[bytes], *, ask: bool
    ) -> tuple[Located, int]:
        """Who has the keys that follow L1's part, as far as is known, and how many nobody has been
        asked about; with `ask` those are asked about now.
        """
        stations = self.asked
        known: Located = []
        for key in keys:
            station = next((station for station in stations if key in station.known), None)
            if station is None and key not in entry.ready:
                break
            known.append((key, None if key in entry.ready else station))
        rest = keys[len(known) :]
        if not rest or not stations or rest[0] in self._absent:
            return known, 0
        first = rest[0]
        if ask and first not in self._searched:
            self._searched.add(first)
            self.search(entry, rest, lambda _: self._searched.discard(first))
        return known, 0 if first in self._absent else len(rest)

    def search(
        self,
        entry: NamespaceEntry,
        keys: Sequence[bytes],
        then: Callable[[Located], None],
        without: Container[tuple[Station, bytes]] = (),
    ) -> None:
        """Ask the adapters how far they have the keys; those `without` one are not asked for it."""

        def found(located: Located) -> None:
            if len(located) < len(keys):
                self._absent.add((keys[len(located)],))
            then(located)

        Search(self.asked, entry, keys, found, without).start()

    def promote(
        self, entry: NamespaceEntry, keys: Sequence[bytes], until_s: float, then: Callable[[], None]
    ) -> Promotion:
        """Bring what L2 has of a prompt to L1; `then` is called when that is done, or in time."""
        promotion = Promotion(self, entry, keys, until_s, then)
        self.start(promotion)
        return promotion

    def start(self, promotion: Promotion) -> None:
        """Begin a promotion; it may be over at once."""
        self._promotions.append(promotion)
        promotion.start()

    def load(
        self,
        entry: NamespaceEntry,
        key: bytes,
        station: Station,
        waiter: Callable[[bytes, bool], None],
    ) -> bool:
        """Load a chunk, or wait for a load of it that is under way; False if it is refused."""
        load = self._loads.get((entry.id, key))
        if load is None or load.over:
            load = Load(entry, key)
            if not station.load(load):
                return False
            self._loads[entry.id, key] = load
            load.waiters.append(lambda key, _: self._forget_load(load))
        load.waiters.append(waiter)
        return True

    def new_hold(self) -> int:
        """The id of a hold that `keep` adds to and `let_go` ends."""
        hold = next(self._keeping)
        self._l1.keep(self._keeper, hold, ())
        return hold

    def keep(self, hold: int, entry: NamespaceEntry, keys: Sequence[bytes]) -> None:
        """Keep chunks from eviction, those of them that are here."""
        slots = [slot for key in keys if (slot := entry.ready.get(key)) is not None]
        self._l1.keep(self._keeper, hold, slots)

    def let_go(self, hold: int) -> None:
        """What was kept may be evicted."""
        self._l1.release(self._keeper, hold)

    # --- dropping ---

    def forget(self, entry: NamespaceEntry, keys: Sequence[bytes]) -> None:
        """Delete chunks from every adapter, as far as it can be reached."""
        for station in self.stations.values():
            station.known.discard(keys)
            for at in range(0, len(keys), MAX_WORK):
                window = keys[at : at + MAX_WORK]
                station.ask(Ask(Verb.DELETE, entry, window, lambda outcomes: None))

    # --- by the clock ---

    def tick(self, now_s: float) -> None:
        """End what has waited long enough; queue some of what adapters lack."""
        if now_s >= self._absent_until_s:
            self._absent.clear()
            self._absent_until_s = now_s + FORGET_ABSENCE_S
        for promotion in self._promotions:
            if now_s >= promotion.until_s:
                promotion.end()
        self._promotions = [promotion for promotion in self._promotions if not promotion.over]
        for station in self.stations.values():
            if station.missing is not None:
                self._offer_some(station, station.missing)
            if station.spec.common.cascade == "evict" and now_s >= self._look_at_coldest_s:
                self._offer_the_coldest(station)
        if now_s >= self._look_at_coldest_s:
            self._look_at_coldest_s = now_s + COLDEST_EVERY_S

    # --- inside ---

    def _published(self, entry: NamespaceEntry, keys: list[bytes]) -> None:
        for station in self.stations.values():
            on_commit = station.spec.common.cascade == "commit" and station.takes_cascades
            if on_commit and station is not self._source:
                station.cascade(entry, keys)

    def _forget_load(self, load: Load) -> None:
        if self._loads.get((load.entry.id, load.key)) is load:
            del self._loads[load.entry.id, load.key]

    def _offer_some(self, station: Station, slots: Iterator[Slot]) -> None:
        """Queue some chunks that were here before the adapter was; they leave half of its queue."""
        if not station.takes_cascades:
            station.missing = None
        if not station.is_open or station.backlog.room_bytes < station.spec.common.queue // 2:
            return
        by_entry: dict[NamespaceEntry, list[bytes]] = {}
        room_bytes = station.backlog.room_bytes - station.spec.common.queue // 2
        for _ in range(OFFERED_AT_ONCE):
            if (slot := next(slots, None)) is None:
                station.missing = None
                break
            here = slot.state == READY and slot.index is slot.namespace.ready  # not cleared
            if here and slot.key not in station.known:
                by_entry.setdefault(slot.namespace, []).append(slot.key)
                room_bytes -= slot.namespace.namespace.chunk_bytes
            if room_bytes <= 0:
                break
        for entry, keys in by_entry.items():
            station.cascade(entry, keys)

    def _offer_the_coldest(self, station: Station) -> None:
        """Queue the chunks that are to be evicted next, once L1 is nearly full."""
        allocator = self._l1.allocator
        if not (allocator.nearly_full and station.is_open):
            return
        for size_class in allocator.classes.values():
            reserve = min(int(len(size_class.order) * RESERVE_SHARE) + 1, MAX_RESERVE)
            by_entry: dict[NamespaceEntry, list[bytes]] = {}
            for slot in itertools.islice(size_class.order.coldest(), reserve):
                key = slot.key
                if slot.index is slot.namespace.ready and not (
                    key in station.known or key in station.leaving
                ):
                    by_entry.setdefault(slot.namespace, []).append(key)
            for entry, keys in by_entry.items():
                queued = station.cascade(entry, keys)
                station.leaving.update(keys[:queued])


def _ready_slots(l1: L1) -> Iterator[Slot]:
    """Every slot with a chunk; L1 may change while this is walked."""
    for size_class in list(l1.allocator.classes.values()):
        for slab in list(size_class.slabs):
            yield from slab.slots
