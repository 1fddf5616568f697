"""What came out of a chaos run: one record, as a table for people and as a line of JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.table import Table

from benchmarks.chaos_account import Account
from benchmarks.chaos_audit import Growth
from benchmarks.chaos_plan import CLIENT_DEATHS, Kind
from benchmarks.chaos_promises import Lost
from benchmarks.chaos_watch import Observations
from benchmarks.latency import Latency
from benchmarks.machine import Circumstances
from lmcache_mp.units import format_bytes

SHOWN = 10


def totals_line(reports: Sequence[ChaosReport]) -> str:
    """Everything that was counted, over all servers."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.totals())
    return "totals: " + ", ".join(f"{name} {count:,}" for name, count in total.items())


class ChaosReport(msgspec.Struct, frozen=True, kw_only=True):
    """One chaos run."""

    benchmark: str = "chaos"
    seed: int
    seconds: float
    clients: int
    l1_bytes: int
    evicts: bool
    """L1 is too small for all chunks: a commit promises nothing then, a pin still does."""
    events: dict[str, int]
    """What went wrong on purpose, and how often."""
    engine_deaths: int
    """Those of whole servers not included."""
    client_deaths: int
    requests: int
    verified_bytes: int
    stored_chunks: int
    wrong_chunks: int
    wrong_bytes: int
    lost_commits: int
    lost: list[Lost]
    """The first of them."""
    evicted_chunks: int
    not_well_framed: int
    """Messages of peers that the engine dropped; those of killed engines as last seen."""
    failed_open: int
    last_failure: str
    longest_silence_s: float
    """Of the server towards a client that ran."""
    longest_call_s: float
    """That includes clients which were stopped during it."""
    engine_back: Latency
    """From an engine's death to the first answer of a living one."""
    server_back: Latency
    """From the end of a supervisor to the first answer of its successor's engine."""
    reservations_back: Latency
    """From a client's death to the moment when what it had reserved can be reserved again."""
    reads_back: Latency
    """The same for what it read or had pinned."""
    disturbed_back: Latency
    """Both, where the engine was dead or stopped meanwhile."""
    growth: Growth
    """Of the last engine over its life, which is a part of the run."""
    leaks: list[str]
    faults: list[str]
    circumstances: Circumstances

    @classmethod
    def of(
        cls,
        account: Account,
        seen: Observations,
        *,
        events: dict[Kind, int],
        evicts: bool,
        engine_back_s: list[float],
        server_back_s: list[float],
        **facts: object,
    ) -> ChaosReport:
        """The report of what the clients told and the watch saw; `facts` are fields as they are."""
        tallies = [witness.tally for witness in account.witnesses]
        lost = account.promises.lost(evicts=evicts)
        return cls(
            evicts=evicts,
            events={str(kind): events.get(kind, 0) for kind in Kind},
            engine_deaths=events.get(Kind.ENGINE_KILLED, 0),
            client_deaths=sum(events.get(kind, 0) for kind in CLIENT_DEATHS),
            requests=sum(tally.requests for tally in tallies),
            verified_bytes=sum(tally.verified_bytes for tally in tallies),
            stored_chunks=sum(tally.stored_chunks for tally in tallies),
            wrong_chunks=len(account.wrong),
            wrong_bytes=sum(wrong.wrong_bytes for wrong in account.wrong),
            lost_commits=len(lost),
            lost=lost[:SHOWN],
            evicted_chunks=sum(seen.evictions.values()),
            not_well_framed=sum(seen.not_well_framed.values()),
            failed_open=sum(tally.failed_open for tally in tallies),
            last_failure=next((t.last_failure for t in tallies if t.last_failure), ""),
            longest_silence_s=round(max(w.longest_silence_s() for w in account.witnesses), 3),
            longest_call_s=round(max(tally.longest_call_s for tally in tallies), 3),
            engine_back=Latency.of(engine_back_s),
            server_back=Latency.of(server_back_s),
            reservations_back=Latency.of(seen.reservations_back_s),
            reads_back=Latency.of(seen.reads_back_s),
            disturbed_back=Latency.of(seen.disturbed_back_s),
            circumstances=Circumstances.here(),
            **facts,  # type: ignore[arg-type]
        )

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not (self.wrong_chunks or self.lost_commits or self.leaks or self.faults)

    def totals(self) -> dict[str, int]:
        """Counts that add up over servers."""
        found = {"wrong bytes": self.wrong_bytes, "lost commits": self.lost_commits}
        found |= {"leaks": len(self.leaks), "faults": len(self.faults)}
        found |= {"engine kills": self.engine_deaths, "client kills": self.client_deaths}
        return found | {"requests": self.requests} | self.events

    def json_line(self) -> str:
        """The report on one line."""
        return msgspec.json.encode(self).decode()

    def table(self) -> Table:
        """The report for people."""
        title = f"chaos, seed {self.seed}: {'every promise kept' if self.good else 'BROKEN'}"
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        judged = "" if not self.evicts else " (L1 evicts: only what was pinned is promised)"
        return [
            ("time", f"{self.seconds:.1f} s, {self.clients} clients"),
            ("L1", format_bytes(self.l1_bytes)),
            *((kind, f"{count:,}") for kind, count in self.events.items()),
            ("requests", f"{self.requests:,}, {self.failed_open:,} calls failed open"),
            ("stored", f"{self.stored_chunks:,} chunks, {self.evicted_chunks:,} evicted"),
            ("verified", format_bytes(self.verified_bytes)),
            ("wrong bytes", f"{self.wrong_bytes:,} in {self.wrong_chunks:,} chunks"),
            ("lost commits", f"{self.lost_commits:,}{judged}"),
            *(("", _sentence(lost)) for lost in self.lost),
            ("leaks", "\n".join(self.leaks) or "0"),
            ("faults", "\n".join(self.faults) or "0"),
            (
                "growth of the engine",
                f"{self.growth.memory_mb} MB, {self.growth.descriptors} descriptors",
            ),
            ("dropped as garbage", f"{self.not_well_framed:,} messages"),
            ("longest without an answer", f"{self.longest_silence_s:.2f} s"),
            ("engine's death to serving again", _times(self.engine_back)),
            ("server's end to serving again", _times(self.server_back)),
            ("client's death to reservations back", _times(self.reservations_back)),
            ("client's death to reads and pins back", _times(self.reads_back)),
            ("both, engine away meanwhile", _times(self.disturbed_back)),
            ("revision", self.circumstances.revision),
        ]


def _sentence(lost: Lost) -> str:
    after_s = lost.missed_s - lost.promised_s
    return f"{lost.key} of {lost.place}, missed {after_s:.2f} s after its {lost.by}"


def _times(latency: Latency) -> str:
    if latency.count == 0:
        return "not measured"
    p50, p99, most = latency.p50_ms, latency.p99_ms, latency.max_ms
    return f"p50 {p50:,.0f}, p99 {p99:,.0f}, max {most:,.0f} ms of {latency.count:,}"
