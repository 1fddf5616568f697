"""A status report as people like to see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmcache_mp.cli.rates import Rates
from lmcache_mp.messages import (
    ClientStatus,
    NamespaceStatus,
    ProcessInfo,
    StatusReport,
)
from lmcache_mp.tiering.status import L2Status
from lmcache_mp.units import format_bytes

GOOD_STATES = ("ready", "running", "open")
BAR_CELLS = 24
PIPE_COLUMNS = 160  # nothing is cut off for grep


def console() -> Console:
    """The terminal, or a pipe: without colours, and wide enough that grep finds whole lines."""
    found = Console()
    if not found.is_terminal:
        found.width = PIPE_COLUMNS
    return found


def page(report: StatusReport, rates: Rates | None = None) -> RenderableType:
    """A whole report, with what happens per second if there was one before."""
    return Group(
        _title(report),
        Text(),
        _gauges(report, rates),
        Text(),
        _processes(report.processes),
        Text(),
        *((adapters(report.l2), Text()) if report.l2 else ()),
        _clients(report.clients),
        Text(),
        _namespaces(report.namespaces),
    )


def duration(seconds: float) -> str:
    """About so long: `3 d 4 h`, `12 min`, `8 s`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def _title(report: StatusReport) -> Text:
    return Text.assemble(
        (safe(report.server), "bold"),
        "  ",
        _state(report.state),
        f"  up {duration(report.uptime_s)}, epoch {report.epoch}, lmcache-mp {report.version}\n",
        (safe("  ".join(report.bus.addresses)), "dim"),
    )


def _gauges(report: StatusReport, rates: Rates | None) -> Table:
    l1, counters, bus = report.l1, report.counters, report.bus
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(width=BAR_CELLS)
    grid.add_column(justify="right")
    grid.add_column()
    grid.add_row(
        "L1",
        _bar(l1.used_bytes, l1.capacity_bytes),
        _percent(l1.used_bytes, l1.capacity_bytes),
        f"{format_bytes(l1.used_bytes)} of {format_bytes(l1.capacity_bytes)} in {safe(l1.path)}",
    )
    if l1.populated_bytes < l1.capacity_bytes:
        grid.add_row(
            "populated",
            _bar(l1.populated_bytes, l1.capacity_bytes),
            _percent(l1.populated_bytes, l1.capacity_bytes),
            Text(safe(l1.populate_error) or "memory is being taken", "yellow"),
        )
    grid.add_row(
        "hits",
        _bar(counters.hit_chunks, counters.lookup_chunks),
        _percent(counters.hit_chunks, counters.lookup_chunks),
        f"{counters.hit_chunks:,} of {counters.lookup_chunks:,} chunks looked up",
    )
    grid.add_row(
        "chunks",
        "",
        f"{l1.ready_chunks:,}",
        f"{l1.leased_chunks:,} leased, {l1.incomplete_chunks:,} incomplete,"
        f" {counters.evicted_chunks:,} evicted by {l1.eviction_policy}",
    )
    grid.add_row(
        "traffic",
        "",
        "",
        f"{format_bytes(counters.stored_bytes)} stored,"
        f" {format_bytes(counters.retrieved_bytes)} retrieved,"
        f" {counters.no_room_chunks:,} chunks found no room",
    )
    grid.add_row(
        "bus",
        "",
        "",
        f"{bus.messages:,} messages, {bus.errors:,} errors, {bus.refused:,} connections refused,"
        f" {bus.not_well_framed:,} dropped",
    )
    if rates is not None:
        grid.add_row(
            "per second",
            _bar(rates.hit_chunks, rates.lookup_chunks),
            _percent(rates.hit_chunks, rates.lookup_chunks),
            f"{rates.hit_chunks:,.0f} of {rates.lookup_chunks:,.0f} chunks hit,"
            f" {format_bytes(rates.stored_bytes)} stored,"
            f" {format_bytes(rates.retrieved_bytes)} retrieved, {rates.messages:,.0f} messages",
        )
    return grid


def _processes(processes: dict[str, ProcessInfo]) -> Table:
    return _table(
        ("process", "pid", "state", "up", "restarts", ""),
        (
            (
                safe(name),
                str(process.pid),
                _state(process.state),
                duration(process.uptime_s),
                str(process.restarts),
                Text.assemble(
                    safe(process.address),
                    "  " if process.address and process.note else "",
                    (safe(process.note), "yellow"),
                ),
            )
            for name, process in processes.items()
        ),
    )


def adapters(found: Sequence[L2Status]) -> Table:
    """The adapters of L2, in the order in which they are asked."""
    return _table(
        ("adapter", "type", "state", "stored", "loaded", "waiting", "lost", ""),
        (
            (
                safe(adapter.name),
                safe(str(adapter.spec.get("type", ""))),
                _state(adapter.state),
                format_bytes(adapter.counters.cascaded_bytes),
                format_bytes(adapter.counters.loaded_bytes),
                format_bytes(adapter.queued_bytes),
                f"{adapter.counters.lost_chunks:,}",
                Text(safe(adapter.error), "yellow"),
            )
            for adapter in found
        ),
    )


def _clients(clients: Sequence[ClientStatus]) -> RenderableType:
    if not clients:
        return Text("no clients", "dim")
    return _table(
        ("client", "pid", "connections", "leases", "leased chunks"),
        (
            (safe(c.who), str(c.pid), str(c.connections), str(c.leases), f"{c.leased_chunks:,}")
            for c in clients
        ),
    )


def _namespaces(namespaces: Sequence[NamespaceStatus]) -> RenderableType:
    if not namespaces:
        return Text("no namespaces", "dim")
    return _table(
        ("model", "dtype", "tokens per chunk", "bytes per chunk", "chunks"),
        (
            (
                safe(n.namespace.model),
                safe(n.namespace.dtype),
                str(n.namespace.chunk_tokens),
                format_bytes(n.namespace.chunk_bytes),
                f"{n.ready_chunks:,}",
            )
            for n in namespaces
        ),
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, style="bold" if index == 0 else "")
    for row in rows:
        table.add_row(*row)
    return table


def _state(state: str) -> Text:
    return Text(safe(state), "green" if state in GOOD_STATES else "yellow")


def _bar(part: float, whole: float) -> Text:
    filled = round(BAR_CELLS * part / whole) if whole else 0
    return Text.assemble(("█" * filled, "cyan"), ("░" * (BAR_CELLS - filled), "dim"))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def safe(text: str) -> str:
    """What others wrote, without anything that would move a terminal's cursor."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
