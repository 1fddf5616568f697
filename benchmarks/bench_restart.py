"""How long until what died is of no consequence: an engine's chunks, a client's reservations?

python -m benchmarks.bench_restart [--chunks 0,100000,1000000] [--rounds 5] [--deaths 300]

From kill -9 of an engine to the first hit again, beside a server's start with an empty L1; and from
kill -9 of a client to the moment when what it had reserved can be reserved by another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.harness import Figure, parser, publish
from benchmarks.hot_path.place import connected, engine_pid
from benchmarks.hot_path.prompts import CHUNKS, NAMESPACE, prompt
from benchmarks.hot_path.speaker import speaking
from benchmarks.latency import Latency
from benchmarks.server import own_server, starting_server, wait_until_answers
from lmcache_mp.client import CacheClient
from lmcache_mp.l1.tier import DEVICE_GRACE_S
from lmcache_mp.rundir import RunDir
from lmcache_mp.supervisor.restart import WELL_AFTER_S
from lmcache_mp.units import Size

SIZES = (0, 100_000, 1_000_000)
START_L1 = Size("64MiB")
ASK_AGAIN_S = 0.002
PATIENCE_S = 60.0
DYING_AT_ONCE = 20
RESERVED_CHUNKS = 16
START_BAR = "<= 3"
DEATH_BAR = "<= 2.5 s"


@dataclass(slots=True)
class Subject:
    """A server with so many chunks, whose engine is killed again and again."""

    chunks: int
    run_dir: RunDir
    cache: CacheClient
    back_at_s: float = -WELL_AFTER_S
    """When it served again last."""
    back_s: list[float] = field(default_factory=list)

    def die(self) -> None:
        """Kill the engine, and ask until there is a hit again."""
        time.sleep(max(0.0, self.back_at_s + WELL_AFTER_S + 1.0 - time.monotonic()))
        pid = engine_pid(self.run_dir)
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while self.cache.lookup(prompt(0)).hit_chunks < CHUNKS:
            if time.monotonic() > killed_s + PATIENCE_S:
                raise RuntimeError(f"no hit {PATIENCE_S:g} s after the engine's death")
            time.sleep(ASK_AGAIN_S)
        self.back_at_s = time.monotonic()
        self.back_s.append(self.back_at_s - killed_s)
        with self.cache.retrieve(prompt(max(self.chunks // CHUNKS - 1, 0))) as hit:
            assert hit.chunks == CHUNKS  # the last as well as the first


def restarts(sizes: list[int], rounds: int) -> Iterator[Figure]:
    """All sizes in turn, and a start beside them in each round."""
    start_s: list[float] = []
    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(_filled(chunks)) for chunks in sizes]
        for number in range(rounds):
            start_s.append(_start())
            for subject in subjects:
                subject.die()
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for subject in subjects:
        chunks = max(subject.chunks, CHUNKS)
        name = f"engine's death to the first hit of {chunks:,} chunks, beside a start"
        if subject.chunks <= SIZES[1]:
            yield _figure(name, START_BAR, start_s, subject.back_s)
    for fewer, more in pairwise(subjects[1:]):
        name = f"the same for {more.chunks:,} chunks, beside {fewer.chunks:,}"
        yield _figure(name, f"<= {more.chunks / fewer.chunks:g}", fewer.back_s, more.back_s)


def deaths(count: int) -> Iterator[Figure]:
    """Clients that die with reservations, so many at once, at moments that nobody chose."""
    chance = random.Random(count)
    took_s: list[float] = []
    with own_server(START_L1) as run_dir:
        while len(took_s) < count:
            numbers = range(len(took_s), min(len(took_s) + DYING_AT_ONCE, count))
            dying = {number: _one_to_die(run_dir, number) for number in numbers}
            with connected(run_dir, NAMESPACE) as probe:
                took_s += _killed(dying, probe, chance)
    latency = Latency.of(took_s)
    assert latency.p99_ms is not None
    yield Figure(
        name=f"a client's death to its reservations back, p99 of {count:,}, beside the grace",
        unit="s",
        floor=DEVICE_GRACE_S,
        subject=round(latency.p99_ms / 1000, 3),
        bar=DEATH_BAR,
        subject_latency=latency,
    )


@contextlib.contextmanager
def _filled(chunks: int) -> Iterator[Subject]:
    """At least one prompt: there must be something to hit."""
    prompts = max(chunks // CHUNKS, 1)
    size = Size((prompts * CHUNKS * NAMESPACE.chunk_bytes * 33 // 32 >> 20) + 4 << 20)
    with own_server(size, adopts=True) as run_dir:
        with speaking(run_dir, NAMESPACE) as speaker:
            for number in range(prompts):
                assert speaker.store(prompt(number).buffer) == CHUNKS
        with CacheClient.connect(
            run_dir.bus_address, NAMESPACE, timeout_s=30, who="bench"
        ) as cache:
            yield Subject(chunks, run_dir, cache)


def _start() -> float:
    began_s = time.monotonic()
    with starting_server(START_L1) as (run_dir, process):
        wait_until_answers(run_dir, process)
        return time.monotonic() - began_s


def _one_to_die(run_dir: RunDir, number: int) -> int:
    """The pid of a new process that holds a reservation, and waits for its end."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            cache = CacheClient.connect(run_dir.bus_address, NAMESPACE, fail_open=False)
            batch = cache.begin_store(prompt(number, RESERVED_CHUNKS))
            os.write(tell, b"%d" % len(batch))
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    held = os.read(ready, 9)
    os.close(ready)
    assert held == b"%d" % RESERVED_CHUNKS, held
    return pid


def _killed(dying: dict[int, int], probe: CacheClient, chance: random.Random) -> list[float]:
    """Kill them one after the other; how long each one's reservation outlived it."""
    took_s: list[float] = []
    waiting: dict[int, float] = {}
    left = list(dying.items())
    next_s = time.monotonic()
    while left or waiting:
        if left and time.monotonic() >= next_s:
            number, pid = left.pop()
            waiting[number] = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            next_s += chance.uniform(0, 0.1)
        for number, killed_s in list(waiting.items()):
            batch = probe.begin_store(prompt(number, RESERVED_CHUNKS))
            batch.abort()
            if len(batch) == RESERVED_CHUNKS:
                took_s.append(time.monotonic() - killed_s)
                del waiting[number]
        time.sleep(ASK_AGAIN_S)
    return took_s


def _figure(name: str, bar: str, floor_s: list[float], subject_s: list[float]) -> Figure:
    return Figure(
        name=name,
        unit="ms, p50",
        floor=round(statistics.median(floor_s) * 1000, 1),
        subject=round(statistics.median(subject_s) * 1000, 1),
        bar=bar,
        floor_latency=Latency.of(floor_s),
        subject_latency=Latency.of(subject_s),
    )


def main() -> int:
    """The command; its exit code."""
    arguments = parser(__doc__ or "")
    arguments.set_defaults(rounds=5)
    arguments.add_argument(
        "--chunks",
        type=lambda text: [int(number) for number in text.split(",")],
        default=list(SIZES),
        metavar="COUNTS",
        help="in L1, ascending, separated by commas; the first is beside a start only",
    )
    arguments.add_argument("--deaths", type=int, default=300, help="of clients")
    options = arguments.parse_args()
    logging.getLogger("lmcache_mp").setLevel(logging.CRITICAL)  # what fails open is expected
    measured = [*restarts(options.chunks, options.rounds), *deaths(options.deaths)]
    publish("bench_restart", measured, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
