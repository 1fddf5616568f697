"""A client that keeps L2 busy in both directions, until its input ends; then says how it went.

    python -m benchmarks.l2.churn ADDRESS SEED CHUNK_BYTES

It stores a new prompt, which is cascaded, and retrieves older ones, most of which have to be
promoted, for L1 holds a fraction of them. Every byte is compared. A miss is an answer; a request
failed if it raised.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Generator

import msgspec

import bus
from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.hot_path.prompts import prompt
from lmcache_mp.client import CacheClient, ChunkKeys, Namespace

CHUNKS = 16
REACH = 32
"""Prompts back that one is drawn from."""
RETRIEVES = 2
"""For each store."""
TIMEOUT_S = 2.0
"""What a client has by default."""
STOP_S = 30.0


class Account(msgspec.Struct, kw_only=True):
    """What one client did, or several together."""

    requests: int = 0
    failed: int = 0
    """They raised."""
    wrong_chunks: int = 0
    hit_chunks: int = 0
    missed_chunks: int = 0
    """Were asked for again and were not to be had."""
    last_failure: str = ""

    def add(self, other: Account) -> None:
        """Make it the account of both."""
        for name in ("requests", "failed", "wrong_chunks", "hit_chunks", "missed_chunks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_failure = self.last_failure or other.last_failure


class Churn:
    """One client's prompts."""

    def __init__(self, cache: CacheClient, seed: int) -> None:
        self.account = Account()
        self._cache = cache
        self._content = ChunkBytes(cache.namespace.chunk_bytes)
        self._random = random.Random(seed)
        self._first = self._next = seed << 32

    def once(self) -> None:
        """One new prompt, some old ones."""
        self._try(lambda: self._store(prompt(self._next, CHUNKS)))
        self._next += 1
        for _ in range(RETRIEVES):
            old = self._random.randrange(max(self._first, self._next - REACH), self._next)
            self._try(lambda old=old: self._retrieve(prompt(old, CHUNKS)))  # type: ignore[misc]

    def _try(self, request: Callable[[], None]) -> None:
        self.account.requests += 1
        try:
            request()
        except bus.BusError as fault:
            self.account.failed += 1
            self.account.last_failure = f"{type(fault).__name__}: {fault}"

    def _store(self, keys: ChunkKeys) -> None:
        with self._cache.store(keys) as stored:
            for index, view in stored.slots():
                self._content.write(keys[index], view)

    def _retrieve(self, keys: ChunkKeys) -> None:
        with self._cache.retrieve(keys) as hit:
            for index, view in hit.slots():
                self._content.read(view)
                self.account.wrong_chunks += self._content.wrong_bytes(keys[index]) > 0
        self.account.hit_chunks += len(hit)
        self.account.missed_chunks += len(keys) - len(hit)


@contextlib.contextmanager
def churning(
    address: str, clients: int, chunk_bytes: int, account: Account
) -> Generator[None, None, None]:
    """Have so many of them at it; afterwards `account` holds how all of them went."""
    command = [sys.executable, "-m", __name__, address]
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for seed in range(1, 1 + clients):
            process = subprocess.Popen(
                [*command, str(seed), str(chunk_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("a client that was to keep L2 busy did not start")
        yield
        for process in processes:
            output, _ = process.communicate(timeout=STOP_S)
            account.add(msgspec.json.decode(output, type=Account))


def main(address: str, seed: int, chunk_bytes: int) -> None:
    """The process."""
    ended = threading.Event()

    def end_with_input() -> None:
        sys.stdin.buffer.read()
        ended.set()

    namespace = Namespace(model="churn", dtype="uint8", shard_bytes=chunk_bytes)
    with CacheClient.connect(
        address, namespace, fail_open=False, timeout_s=TIMEOUT_S, who="churn"
    ) as cache:
        churn = Churn(cache, seed)
        print("ready", flush=True)
        threading.Thread(target=end_with_input, daemon=True).start()
        while not ended.is_set():
            churn.once()
    sys.stdout.buffer.write(msgspec.json.encode(churn.account))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
