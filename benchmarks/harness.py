"""How every figure is measured: one clock, pinned, warmed up, and beside its floor.

The floor is what the machine itself charges for the same thing (a raw echo, a memcpy). Floor and
subject take turns in one run, so that a noisy minute hits both, and a figure reads as a ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.latency import Latency
from benchmarks.machine import Circumstances


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured ratio."""

    name: str
    unit: str
    floor: float
    subject: float
    bar: str
    """Where the ratio should be, for instance `<= 1.5`; or the subject, then with its unit."""
    floor_latency: Latency | None = None
    subject_latency: Latency | None = None

    @property
    def ratio(self) -> float:
        """Subject by floor."""
        return self.subject / self.floor

    @property
    def reached(self) -> bool:
        """Whether the ratio, or the subject, is where it should be."""
        relation, bound, *unit = self.bar.split()
        value = self.subject if unit else self.ratio
        return value <= float(bound) if relation == "<=" else value >= float(bound)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A figure as it is written down."""

    benchmark: str
    figure: Figure
    ratio: float
    reached: bool
    circumstances: Circumstances


def take_turns(
    floor: Callable[[], None],
    subject: Callable[[], None],
    *,
    rounds: int,
    calls: int,
    prepare: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """The seconds of each of `rounds * calls` calls of both; a further round warms up.

    `prepare` runs before each round, unmeasured.
    """
    floor_s: list[float] = []
    subject_s: list[float] = []
    for _ in range(1 + rounds):
        prepare()
        floor_s += _times(floor, calls)
        subject_s += _times(subject, calls)
    return floor_s[calls:], subject_s[calls:]


def _times(action: Callable[[], None], calls: int) -> list[float]:
    clock = time.perf_counter
    seconds = []
    for _ in range(calls):
        began_s = clock()
        action()
        seconds.append(clock() - began_s)
    return seconds


def of_latencies(
    name: str, bar: str, floor_s: Iterable[float], subject_s: Iterable[float]
) -> Figure:
    """The ratio of the medians."""
    floor, subject = Latency.of(floor_s), Latency.of(subject_s)
    assert floor.p50_ms is not None
    assert subject.p50_ms is not None
    return Figure(
        name=name,
        unit="us, p50",
        floor=round(floor.p50_ms * 1000, 2),
        subject=round(subject.p50_ms * 1000, 2),
        bar=bar,
        floor_latency=floor,
        subject_latency=subject,
    )


def pin(pid: int, cpus: Iterable[int]) -> None:
    """Let all threads of a process run on these CPUs only; 0 is this process."""
    allowed = set(cpus)
    for thread in os.listdir(f"/proc/{pid or 'self'}/task"):
        os.sched_setaffinity(int(thread), allowed)


@contextlib.contextmanager
def on_cpus(cpus: Iterable[int]) -> Iterator[None]:
    """Run this process on these CPUs for a while; what it starts meanwhile inherits that."""
    before = os.sched_getaffinity(0)
    pin(0, cpus)
    try:
        yield
    finally:
        pin(0, before)


def publish(benchmark: str, figures: Sequence[Figure], file: Path | None) -> None:
    """A table for people, a JSON line per figure for the rest."""
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table_of(benchmark, figures))
    here = Circumstances.here()
    lines = [
        Line(
            benchmark=benchmark,
            figure=figure,
            ratio=round(figure.ratio, 3),
            reached=figure.reached,
            circumstances=here,
        )
        for figure in figures
    ]
    text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines).decode()
    print(text, end="", flush=True)
    if file is not None:
        with open(file, "a") as output:
            output.write(text)


def table_of(benchmark: str, figures: Sequence[Figure]) -> Table:
    """A row per figure."""
    table = Table(title=benchmark, title_justify="left")
    table.add_column("figure", min_width=max(len(figure.name) for figure in figures))
    for column in ("ours", "floor", "", "ratio", "bar", "met?"):
        table.add_column(column, justify="left" if column in ("", "met?") else "right")
    for figure in figures:
        measured = [f"{figure.subject:,.1f}", f"{figure.floor:,.1f}", figure.unit]
        met = "yes" if figure.reached else "[bold red]no[/]"
        table.add_row(figure.name, *measured, f"{figure.ratio:.2f}", figure.bar, met)
    return table


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description.partition("\n")[0])
    arguments.add_argument("--json", type=Path, metavar="FILE", help="append the JSON lines to it")
    arguments.add_argument("--rounds", type=int, default=20, help="of floor and subject in turn")
    return arguments
