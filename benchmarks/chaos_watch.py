"""Who watches a chaos run: a thread that asks the server all the time what is going on.

From its answers: when the server served again after a death, and when a dead client's rights to
bytes were over (its reservations can be reserved anew, its reads and pins are off the list).
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field

import bus
from benchmarks.chaos_crew import Death
from benchmarks.chaos_prompts import NAMESPACES
from lmcache_mp.client import CacheClient, ChunkKeys
from lmcache_mp.messages import Status, StatusReport

LOOK_EVERY_S = 0.02
LONG_DEAD_S = 20.0


@dataclass(slots=True)
class Grave:
    """A dead client whose rights to bytes may live on."""

    death: Death
    place: int
    keys: ChunkKeys | None
    """What it had reserved; None: reads and pins."""
    disturbed: bool = False
    """Whether the server was away for a moment meanwhile."""


@dataclass(slots=True)
class Observations:
    """What was seen."""

    served_since: dict[int, float] = field(default_factory=dict)
    """First answer of each engine process, by its pid."""
    reservations_back_s: list[float] = field(default_factory=list)
    reads_back_s: list[float] = field(default_factory=list)
    disturbed_back_s: list[float] = field(default_factory=list)
    """Both, where the engine was dead or stopped in between."""
    faults: list[str] = field(default_factory=list)
    evictions: dict[int, int] = field(default_factory=dict)
    """Evicted chunks, by the engine's pid."""
    not_well_framed: dict[int, int] = field(default_factory=dict)


class Watch:
    """The thread. `report` is the server's last answer."""

    def __init__(self, address: str) -> None:
        self.seen = Observations()
        self.report: StatusReport | None = None
        self._address = address
        self._graves: list[Grave] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()

    def bury(self, death: Death) -> None:
        """Watch until nothing of it is left."""
        words = death.witness.last_words
        if not death.witness.started:
            return
        keys = ChunkKeys(words.keys) if words is not None and words.keys else None
        with self._lock:
            self._graves.append(Grave(death, words.place if words is not None else 0, keys))

    def disturbed(self) -> None:
        """The engine is away: what is measured now says little about it."""
        with self._lock:
            for grave in self._graves:
                grave.disturbed = True

    @property
    def graves(self) -> int:
        """Dead clients of whom something is left."""
        with self._lock:
            return len(self._graves)

    def stop(self) -> None:
        """End the thread, with its clients."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            probes = [
                stack.enter_context(
                    CacheClient.connect(self._address, namespace, fail_open=True, who="probe")
                )
                for namespace in NAMESPACES
            ]
            client: bus.Client | None = None
            while not self._stop.wait(LOOK_EVERY_S):
                try:
                    client = client or bus.Client(self._address, connect_timeout_s=0.5)
                    self._note(client.call(Status(), 5.0))
                    self._visit_graves(probes)
                except bus.BusError:
                    if client is not None:
                        client.close()
                    client = None
                    self.disturbed()
            if client is not None:
                client.close()

    def _note(self, report: StatusReport) -> None:
        self.report = report
        pid = report.processes["engine"].pid
        self.seen.served_since.setdefault(pid, time.monotonic())
        self.seen.evictions[pid] = report.counters.evicted_chunks
        self.seen.not_well_framed[pid] = report.bus.not_well_framed

    def _visit_graves(self, probes: list[CacheClient]) -> None:
        with self._lock:
            graves = list(self._graves)
        assert self.report is not None
        listed = {client.pid for client in self.report.clients}
        for grave in graves:
            if grave.keys is None:
                over = grave.death.pid not in listed
            else:
                over = _can_be_reserved(probes[grave.place], grave.keys)
            took_s = time.monotonic() - grave.death.at_s
            if not over and took_s < LONG_DEAD_S:
                continue
            if not over:
                what = "reads or pins" if grave.keys is None else "reservations"
                self.seen.faults.append(
                    f"{grave.death.witness.name} has been dead for {took_s:.0f} s and still has"
                    f" {what}"
                )
            elif grave.disturbed:
                self.seen.disturbed_back_s.append(took_s)
            elif grave.keys is None:
                self.seen.reads_back_s.append(took_s)
            else:
                self.seen.reservations_back_s.append(took_s)
            with self._lock:
                self._graves.remove(grave)


def _can_be_reserved(probe: CacheClient, keys: ChunkKeys) -> bool:
    """Whether nobody has these reserved any more. Leaves nothing behind."""
    batch = probe.begin_store(keys)
    batch.abort()
    return len(batch) == len(keys)
