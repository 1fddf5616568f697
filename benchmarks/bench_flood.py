"""What does a client notice of a peer that floods, beside a raw pyzmq echo under the same flood?

python -m benchmarks.bench_flood [--only calls,mute,garbage,vanishing]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.echo import raw_call, serving
from benchmarks.flooder import Flood, flooding
from benchmarks.harness import Figure, parser, pin, publish
from benchmarks.hot_path.place import engine_pid
from benchmarks.latency import Latency, percentile
from benchmarks.server import own_server
from bus import Client
from lmcache_mp.messages import Heartbeat
from lmcache_mp.units import Size

ROUND_S = 0.5
SETTLED_AFTER_S = 0.1
BAR = "<= 2"
PATIENCE_S = 60.0


def calls_of(call: Callable[[], None], seconds: float) -> list[float]:
    """The seconds of as many blocking calls as fit."""
    clock = time.perf_counter
    taken_s: list[float] = []
    end_s = clock() + seconds
    while (began_s := clock()) < end_s:
        call()
        taken_s.append(clock() - began_s)
    return taken_s


def beside(
    flood: Flood | None, address: str, call: Callable[[], None], seconds: float
) -> list[float]:
    """The same while a peer floods."""
    if flood is None:
        return calls_of(call, seconds)
    with flooding(flood, address):
        calls_of(call, SETTLED_AFTER_S)
        return calls_of(call, seconds)


def figures(
    raw: str, engine: str, floods: Sequence[Flood | None], rounds: int, seconds: float
) -> Iterator[Figure]:
    """Two a flood: what is usual, and the tail."""
    with raw_call(raw) as floor, Client(engine) as client:

        def subject() -> None:
            client.call(Heartbeat(), PATIENCE_S)

        for flood in floods:
            floor_s: list[list[float]] = []
            subject_s: list[list[float]] = []
            for _ in range(rounds):
                floor_s.append(beside(flood, raw, floor, seconds))
                subject_s.append(beside(flood, engine, subject, seconds))
            yield from of_tails(f"empty call beside {flood or 'nobody'}", floor_s, subject_s)


def of_tails(
    name: str, floor_s: Sequence[list[float]], subject_s: Sequence[list[float]]
) -> Iterator[Figure]:
    """What is usual and the tail, each the median of the rounds': a round that was disturbed does
    not count for both. The latencies that are written down with it are of all rounds.
    """
    floor, subject = (Latency.of(itertools.chain(*rounds)) for rounds in (floor_s, subject_s))
    for title, percent in ((name, 50), (f"{name}: tail", 99)):
        yield Figure(
            name=title,
            unit=f"us, p{percent}",
            floor=round(_usual_us(floor_s, percent), 1),
            subject=round(_usual_us(subject_s, percent), 1),
            bar=BAR,
            floor_latency=floor,
            subject_latency=subject,
        )


def _usual_us(rounds: Sequence[list[float]], percent: int) -> float:
    return statistics.median(percentile(sorted(taken_s), percent) for taken_s in rounds) * 1e6


def floods_named(text: str) -> list[Flood]:
    """What `--only` asks for."""
    try:
        return [Flood(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(Flood)}") from None


def main() -> int:
    """The command; its exit code."""
    arguments = parser(__doc__ or "")
    arguments.set_defaults(rounds=10)
    arguments.add_argument(
        "--only", type=floods_named, default=[None, *Flood], help=f"some of {','.join(Flood)}"
    )
    arguments.add_argument("--quick", action="store_true", help="shows that it runs, no more")
    options = arguments.parse_args()
    rounds, seconds = (1, 0.05) if options.quick else (options.rounds, ROUND_S)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        raw = f"ipc://{directory}/raw.sock"
        with serving("raw", raw) as raw_pid, own_server(Size("16MiB")) as run_dir:
            cpus = sorted(os.sched_getaffinity(0))
            pin(0, cpus[:1])  # and the flooders with it
            for pid in (raw_pid, engine_pid(run_dir)):
                pin(pid, cpus[1:2] or cpus)
            measured = list(figures(raw, run_dir.bus_address, options.only, rounds, seconds))
    publish("bench_flood", measured, options.json)
    print(f"took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
