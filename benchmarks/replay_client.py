"""One client process of a replay: an inference engine that computes nothing.

It reads a `Job` from its standard input, says `Ready` on its standard output, waits for the time to
start on its input, says how far it is from time to time, and at last its `Tally`. One JSON object a
line.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.trace import BLOCK_TOKENS, TraceRequest, prompt_tokens, read_trace
from bus import BusError
from lmcache_mp.client import CacheClient, ChunkKeys, Namespace

PROGRESS_S = 0.1


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one client is to do: the requests `first`, `first + clients`, ... of the trace."""

    trace: str
    limit: int | None
    first: int
    clients: int
    address: str
    namespace: Namespace
    timeout_s: float
    speed: float | None
    """Trace time runs so many times as fast as the clock; None: one request after the other."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Connected, and everything in memory."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Begin at this time of the machine's monotonic clock."""

    at_s: float


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """So many requests have been replayed."""

    requests: int


class Tally(msgspec.Struct, kw_only=True, tag="tally"):
    """What one client did and saw."""

    requests: int = 0
    chunks: int = 0
    hit_chunks: int = 0
    stored_chunks: int = 0
    no_room_chunks: int = 0
    wrong_bytes: int = 0
    wrong_chunks: int = 0
    retrieve_s: list[float] = []
    """Per request: lookup, retrieve, copying all bytes out, release."""
    reading_s: float = 0.0
    """The same, of the requests that hit."""
    store_s: list[float] = []
    """Per request that missed something: prepare, copying the missing bytes in, commit."""
    failures: dict[str, int] = {}
    last_failure: str = ""
    ended_at_s: float = 0.0


Line = Ready | Progress | Tally
decode_line = msgspec.json.Decoder(Line).decode


class Replay:
    """Replays requests against one cache client, and keeps the tally."""

    def __init__(self, cache: CacheClient, chunk_bytes: ChunkBytes) -> None:
        self._cache = cache
        self._chunk_bytes = chunk_bytes
        self.tally = Tally()

    def replay(self, request: TraceRequest) -> None:
        """Look a prompt up, read and verify what is there, store what is missing."""
        keys = self._cache.chunk_keys(prompt_tokens(request.hash_ids))
        hit_chunks = self._retrieve(keys)
        if hit_chunks < len(keys):
            self._store(keys)
        self.tally.requests += 1
        self.tally.chunks += len(keys)
        self.tally.hit_chunks += hit_chunks

    def _retrieve(self, keys: ChunkKeys) -> int:
        clock = time.perf_counter
        began_s = clock()
        checking_s = 0.0
        hit_chunks = 0
        if self._cache.lookup(keys).hit_chunks:
            with self._cache.retrieve(keys) as hit:
                for index, slot in hit.slots():
                    self._chunk_bytes.read(slot)
                    copied_s = clock()
                    self._check(keys[index])
                    checking_s += clock() - copied_s
                hit_chunks = hit.chunks
        taken_s = clock() - began_s - checking_s
        self.tally.retrieve_s.append(taken_s)
        if hit_chunks:
            self.tally.reading_s += taken_s
        return hit_chunks

    def _check(self, key: bytes) -> None:
        if wrong := self._chunk_bytes.wrong_bytes(key):
            self.tally.wrong_bytes += wrong
            self.tally.wrong_chunks += 1

    def _store(self, keys: ChunkKeys) -> None:
        began_s = time.perf_counter()
        with self._cache.store(keys) as batch:
            for index, slot in batch.slots():
                self._chunk_bytes.write(keys[index], slot)
        self.tally.store_s.append(time.perf_counter() - began_s)
        self.tally.stored_chunks += batch.committed_chunks
        self.tally.no_room_chunks += batch.no_room_chunks


def main() -> int:
    """The process; its exit code."""
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)
    assert BLOCK_TOKENS % job.namespace.chunk_tokens == 0
    requests = read_trace(Path(job.trace), job.limit)[job.first :: job.clients]
    with CacheClient.connect(
        job.address, job.namespace, timeout_s=job.timeout_s, who=f"replay {job.first}"
    ) as cache:
        replay = Replay(cache, ChunkBytes(job.namespace.shard_bytes))
        _say(Ready())
        start = msgspec.json.decode(sys.stdin.readline(), type=Start)
        _replay_all(replay, requests, start.at_s, job.speed)
        tally = replay.tally
        tally.failures = cache.counters.failures
        tally.last_failure = cache.counters.last_failure
    _say(tally)
    return 0


def _replay_all(
    replay: Replay, requests: list[TraceRequest], start_s: float, speed: float | None
) -> None:
    _sleep_until(start_s)
    said_s = start_s
    for request in requests:
        if speed is not None:
            _sleep_until(start_s + request.timestamp / 1000 / speed)
        replay.replay(request)
        if time.monotonic() - said_s > PROGRESS_S:
            said_s = time.monotonic()
            _say(Progress(replay.tally.requests))
    replay.tally.ended_at_s = time.monotonic()


def _sleep_until(when_s: float) -> None:
    if (left_s := when_s - time.monotonic()) > 0:
        time.sleep(left_s)


def _say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BusError as fault:
        sys.exit(f"replay_client: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
