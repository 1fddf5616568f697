"""What a user whose prompts are in L1 notices of an L2 that is busy, hangs or crashes.

Two other clients store and promote as fast as they can. Beside them one client makes calls: raw
echoes, hits of L1, and empty calls of the engine, in turn. What an empty call takes is the wait for
a CPU, which the echo has too, and the engine's own lag, for its loop has other messages in hand: so
that lag is given as the empty calls' p99 less the echoes'. (Both stand in the JSON lines.)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

import bus
from benchmarks.echo import raw_call, serving
from benchmarks.harness import Figure
from benchmarks.hot_path.place import connected
from benchmarks.hot_path.prompts import NAMESPACE, prompt
from benchmarks.l2.churn import Account, churning
from benchmarks.l2.effort import MIB, Effort
from benchmarks.l2.fs import scratch
from benchmarks.l2.node import adapter_of, node
from benchmarks.latency import Latency
from benchmarks.server import status
from lmcache_mp.client import CacheClient
from lmcache_mp.messages import Heartbeat
from lmcache_mp.rundir import RunDir
from lmcache_mp.units import Size

CHUNKS = 8
"""Of the prompt that is always in L1."""
CHURNERS = 2
CHUNK_BYTES = MIB
DISK = "2GiB"
HIT_BAR, LAG_BAR, FAILED_BAR = "<= 1.5", "<= 1 ms", "<= 0 requests"
HANG_DEADLINE_S = 1.0
CRASH_AFTER_S = 1.0


def busy(effort: Effort) -> Iterator[Figure]:
    """L2 works; and, to compare with, is left in peace."""
    yield from _figures(effort, "busy", _fs, idle_too=True)


def hanging(effort: Effort) -> Iterator[Figure]:
    """Whatever L2 is asked, it does not answer, and its worker is ended for it again and again."""

    drill = {"hang_rate": 1.0, "deadline_s": HANG_DEADLINE_S}
    yield from _figures(effort, "hanging", lambda path: _fault(path, drill))


def crashing(effort: Effort) -> Iterator[Figure]:
    """The worker crashes a second after each start, and starts again after ever longer pauses."""
    drill = {"crash_after_s": CRASH_AFTER_S}
    yield from _figures(effort, "crashing", lambda path: _fault(path, drill))


def _fault(path: str, drill: dict[str, Any]) -> dict[str, Any]:
    return {"type": "fault", "of": _fs(path), **drill}


def _fs(path: str) -> dict[str, Any]:
    return {"type": "fs", "path": path, "capacity": DISK}


def _figures(
    effort: Effort,
    how: str,
    adapter: Callable[[str], dict[str, Any]],
    *,
    idle_too: bool = False,
) -> Iterator[Figure]:
    account = Account()
    with (
        scratch(effort) as path,
        node(Size(effort.busy_l1_bytes), adapter(str(path))) as run_dir,
        serving("raw", f"ipc://{run_dir.path}/raw.sock"),
        connected(run_dir, NAMESPACE) as cache,
    ):
        user = User(effort, run_dir, cache)
        if idle_too:
            yield from user.figures("idle")
        before, began_s = adapter_of(run_dir).counters, time.monotonic()
        with churning(run_dir.bus_address, CHURNERS, CHUNK_BYTES, account):
            figures = list(user.figures(how))
            after, took_s = adapter_of(run_dir).counters, time.monotonic() - began_s
            restarts = status(run_dir).processes[f"l2.{adapter_of(run_dir).name}"].restarts
        stored = (after.cascaded_bytes - before.cascaded_bytes) / 1e6 / took_s
        loaded = (after.loaded_bytes - before.loaded_bytes) / 1e6 / took_s
    yield from figures
    print(
        f"L2 {how}: {stored:.0f} MB/s stored, {loaded:.0f} MB/s loaded, "
        f"{after.lost_chunks} chunks not cascaded, {restarts} restarts, {account}",
        file=sys.stderr,
    )
    yield _failed(f"requests that failed or were wrong, L2 {how}", user, account)


def _failed(name: str, user: User, account: Account) -> Figure:
    return Figure(
        name=name,
        unit="requests",
        floor=user.requests + account.requests,
        subject=user.failed + account.failed + account.wrong_chunks,
        bar=FAILED_BAR,
    )


class User:
    """The client whose prompt is in L1, pinned there."""

    def __init__(self, effort: Effort, run_dir: RunDir, cache: CacheClient) -> None:
        self.requests = self.failed = 0
        self._effort = effort
        self._run_dir = run_dir
        self._cache = cache
        self._keys = prompt(0, CHUNKS)
        with cache.store(self._keys) as stored:
            for index, view in stored.slots():
                view[: len(self._keys[index])] = self._keys[index]
        self._pin = cache.pin(self._keys)
        if self._pin.chunks != CHUNKS:
            raise RuntimeError("L1 did not take the prompt that is to be hit")

    def figures(self, how: str) -> Iterator[Figure]:
        """Tails of hits and of empty calls beside those of echoes, all in turn."""
        address = f"ipc://{self._run_dir.path}/raw.sock"
        with raw_call(address) as echo, bus.Client(self._run_dir.bus_address) as client:

            def ping() -> None:
                client.call(Heartbeat())

            calls = (echo, self._lookup, self._retrieve, ping)
            echo_s, lookup_s, retrieve_s, ping_s = _in_turn(calls, self._effort)
        floor = Latency.of(echo_s)
        for verb, taken_s in (("lookup", lookup_s), ("retrieve", retrieve_s)):
            name = f"{verb} of {CHUNKS} chunks in L1, L2 {how}"
            yield _of_tails(name, HIT_BAR, floor, Latency.of(taken_s))
        yield _lag(f"engine's loop lag, L2 {how}", floor, Latency.of(ping_s))

    def _lookup(self) -> None:
        self._count(lambda: self._cache.lookup(self._keys).l1_chunks)

    def _retrieve(self) -> None:
        self._count(self._retrieved)

    def _retrieved(self) -> int:
        with self._cache.retrieve(self._keys) as hit:
            return sum(
                bytes(view[: len(self._keys[index])]) == self._keys[index]
                for index, view in hit.slots()
            )

    def _count(self, hits: Callable[[], int]) -> None:
        """Make a request that has to find the whole prompt."""
        self.requests += 1
        try:
            self.failed += hits() != CHUNKS
        except bus.BusError as fault:
            print(f"a hit failed: {fault}", file=sys.stderr)
            self.failed += 1


def _in_turn(calls: Sequence[Callable[[], None]], effort: Effort) -> list[list[float]]:
    """The seconds of each call of each of them; a few of one, then of the next, for so long."""
    clock = time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    end_s = clock() + effort.busy_s
    while clock() < end_s:
        for call, taken_s in zip(calls, times, strict=True):
            for _ in range(effort.busy_calls):
                began_s = clock()
                call()
                taken_s.append(clock() - began_s)
    return times


def _of_tails(name: str, bar: str, floor: Latency, subject: Latency) -> Figure:
    assert floor.p99_ms is not None
    assert subject.p99_ms is not None
    return Figure(
        name=name,
        unit="ms, p99",
        floor=floor.p99_ms,
        subject=subject.p99_ms,
        bar=bar,
        floor_latency=floor,
        subject_latency=subject,
    )


def _lag(name: str, floor: Latency, subject: Latency) -> Figure:
    """By how much the tail of empty calls is longer than that of echoes."""
    tails = _of_tails(name, LAG_BAR, floor, subject)
    return msgspec.structs.replace(tails, subject=round(max(0.0, tails.subject - tails.floor), 4))
