"""What came out of a replay: one record, as a table for people and as a JSON line for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from rich.table import Table

from benchmarks.latency import Latency
from benchmarks.machine import Circumstances
from benchmarks.replay_client import Tally
from lmcache_mp.messages import CacheCounters
from lmcache_mp.units import format_bytes


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What was replayed, and into how much room."""

    trace: str
    clients: int
    speed: float | None
    chunk_tokens: int
    chunk_bytes: int
    l1_bytes: int
    unlimited_hit_rate: float
    """Share of the chunks that a cache with room for all of them would have had."""


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """One replay."""

    benchmark: str = "replay_trace"
    workload: Workload
    seconds: float
    requests: int
    chunks: int
    hit_rate: float
    """Share of the chunks that were here, of all clients and requests together."""
    verified_bytes: int
    wrong_bytes: int
    wrong_chunks: int
    stored_bytes: int
    retrieve_gb_per_s: float
    """Of one client, from a lookup that hits until all bytes are copied out of L1."""
    store_gb_per_s: float
    """Of one client, from the request for room until the commit."""
    total_gb_per_s: float
    """Into and out of L1, of all clients and over the whole time, verification included."""
    lookup_retrieve: Latency
    store: Latency
    evicted_chunks: int
    no_room_chunks: int
    failures: dict[str, int]
    """Verbs that failed open, and how often."""
    last_failure: str
    circumstances: Circumstances

    @classmethod
    def of(
        cls,
        workload: Workload,
        seconds: float,
        tallies: Sequence[Tally],
        before: CacheCounters,
        after: CacheCounters,
    ) -> ReplayReport:
        """The report of all clients' tallies and of the server's counters around the replay."""
        chunks, hits = sum(t.chunks for t in tallies), sum(t.hit_chunks for t in tallies)
        read_bytes = hits * workload.chunk_bytes
        stored_bytes = sum(t.stored_chunks for t in tallies) * workload.chunk_bytes
        retrieve_s = [seconds for tally in tallies for seconds in tally.retrieve_s]
        store_s = [seconds for tally in tallies for seconds in tally.store_s]
        return cls(
            workload=workload,
            seconds=round(seconds, 3),
            requests=sum(t.requests for t in tallies),
            chunks=chunks,
            hit_rate=_ratio(hits, chunks, 4),
            verified_bytes=read_bytes,
            wrong_bytes=sum(t.wrong_bytes for t in tallies),
            wrong_chunks=sum(t.wrong_chunks for t in tallies),
            stored_bytes=stored_bytes,
            retrieve_gb_per_s=_ratio(read_bytes / 1e9, sum(t.reading_s for t in tallies), 3),
            store_gb_per_s=_ratio(stored_bytes / 1e9, sum(store_s), 3),
            total_gb_per_s=_ratio((read_bytes + stored_bytes) / 1e9, seconds, 3),
            lookup_retrieve=Latency.of(retrieve_s),
            store=Latency.of(store_s),
            evicted_chunks=after.evicted_chunks - before.evicted_chunks,
            no_room_chunks=sum(t.no_room_chunks for t in tallies),
            failures=_added(tally.failures for tally in tallies),
            last_failure=next((t.last_failure for t in tallies if t.last_failure), ""),
            circumstances=Circumstances.here(),
        )

    def json_line(self) -> str:
        """The report on one line."""
        return msgspec.json.encode(self).decode()

    def table(self) -> Table:
        """The report for people."""
        load = self.workload
        table = Table(title=f"replay of {load.trace}", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        load, where = self.workload, self.circumstances
        pace = "as fast as possible" if load.speed is None else f"{load.speed:g} x trace time"
        failed = ", ".join(f"{count} {verb}" for verb, count in self.failures.items())
        return [
            ("requests", f"{self.requests:,} by {load.clients} clients, {pace}"),
            ("time", f"{self.seconds:.1f} s"),
            ("chunks", f"{self.chunks:,} of {format_bytes(load.chunk_bytes)}"),
            ("L1", format_bytes(load.l1_bytes)),
            ("hit rate", f"{self.hit_rate:.1%}, with unlimited room {load.unlimited_hit_rate:.1%}"),
            ("verified", format_bytes(self.verified_bytes)),
            ("wrong bytes", f"{self.wrong_bytes:,} in {self.wrong_chunks:,} chunks"),
            ("stored", format_bytes(self.stored_bytes)),
            ("retrieve", f"{self.retrieve_gb_per_s:.1f} GB/s per client"),
            ("store", f"{self.store_gb_per_s:.1f} GB/s per client"),
            ("overall", f"{self.total_gb_per_s:.1f} GB/s in and out, verification included"),
            ("lookup + retrieve", _percentiles(self.lookup_retrieve)),
            ("store", _percentiles(self.store)),
            ("evictions", f"{self.evicted_chunks:,} chunks"),
            ("no room", f"{self.no_room_chunks:,} chunks"),
            ("failed open", f"{failed}: {self.last_failure}" if failed else "0"),
            ("machine", f"{where.machine.cores} cores of {where.machine.cpu}"),
            ("revision", f"{where.versions['lmcache-mp']} {where.revision}"),
        ]


def _percentiles(latency: Latency) -> str:
    if latency.count == 0:
        return "not measured"
    return (
        f"p50 {latency.p50_ms:.2f}, p99 {latency.p99_ms:.2f}, p99.9 {latency.p999_ms:.2f} ms"
        f" of {latency.count:,}"
    )


def _ratio(part: float, whole: float, digits: int) -> float:
    return round(part / whole, digits) if whole else 0.0


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            total[name] = total.get(name, 0) + number
    return total
