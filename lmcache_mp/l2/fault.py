"""`{"type": "fault", "of": {"type": "fs", "path": "/kv"}, "error_rate": 0.1}`: another adapter, and
what can go wrong with it. For drills: see what a server does before its store does it.

Each verb draws its lots from a row of its own, which the seed fixes: the third load of a run goes
as wrong as that of the next, whatever its threads do meanwhile. Nest them for rates that differ.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta
from typing_extensions import override

from lmcache_mp import l2
from lmcache_mp.tiering.spec import AdapterSpec, Common

Verb = Literal["open", "lookup", "store", "load", "delete", "scan"]
Rate = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]


class Config(l2.AdapterConfig, frozen=True, kw_only=True):
    """What goes wrong, and how often: a rate of 1 is every call."""

    of: AdapterSpec
    """The adapter itself: its type and the settings of its type."""
    verbs: tuple[Verb, ...] = ("lookup", "store", "load", "delete", "scan")
    """Which calls are delayed, hang, fail or crash; `open` is the adapter's start."""
    seed: int = 0
    delay_s: Seconds = 0.0
    delay_random_s: Seconds = 0.0
    """A delayed call takes `delay_s`, and anything up to `delay_random_s` beside."""
    delay_rate: Rate = 1.0
    error_rate: Rate = 0.0
    hang_rate: Rate = 0.0
    hang_until: Literal["close", "never"] = "close"
    crash_rate: Rate = 0.0
    """The process is killed (SIGKILL) in the call."""
    crash_after_s: Seconds | None = None
    """It is killed in the first call that comes so long after the start."""
    corrupt_rate: Rate = 0.0
    """Of loads: one bit of what was read is another one."""
    torn_rate: Rate = 0.0
    """Of stores: only the first pages are stored, or none, and nothing is said."""

    def __post_init__(self) -> None:
        if misplaced := [key for key in Common.__struct_fields__[1:] if key in self.of.mapping]:
            raise ValueError(f"{', '.join(misplaced)}: stands beside `of`, not in it")


class Adapter(l2.Adapter[Config]):
    """See the module."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._lots: dict[Verb, random.Random] = {}
        self._happened: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._opened_at_s = time.monotonic()
        self._strike("open")
        self._inner = config.of.open()

    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        self._strike("lookup")
        return self._inner.lookup(keys)

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        lots = self._strike("store")
        if lots.random() < self.config.torn_rate:
            self._count("torn")
            length = sum(len(part) for part in parts)
            parts = _first(parts, lots.randrange(length // l2.ENVELOPE_BYTES) * l2.ENVELOPE_BYTES)
        if parts:
            self._inner.store(key, parts)

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        lots = self._strike("load")
        length = self._inner.load(key, parts)
        if lots.random() < self.config.corrupt_rate and length:
            self._count("corrupted")
            at = lots.randrange(min(length, sum(len(part) for part in parts)))
            _flip(parts, at, 1 << lots.randrange(8))
        return length

    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        self._strike("delete")
        self._inner.delete(keys)

    @override
    def scan(self) -> Iterator[bytes]:
        self._strike("scan")
        return self._inner.scan()

    @override
    def close(self) -> None:
        self._closed.set()
        self._inner.close()

    @override
    def figures(self) -> dict[str, int | float]:
        with self._lock:
            return {**self._inner.figures(), **self._happened}

    def _strike(self, verb: Verb) -> random.Random:
        """Let happen what may happen to any call; returns the lots of what else may."""
        config = self.config
        with self._lock:
            row = self._lots.setdefault(verb, random.Random(f"{config.seed} {verb}"))  # noqa: S311
            lots = random.Random(row.getrandbits(64))  # noqa: S311  # lots, no secrets
        crash, hang, error, delay, more = (lots.random() for _ in range(5))
        if verb not in config.verbs:
            return lots
        overdue = (
            config.crash_after_s is not None
            and time.monotonic() - self._opened_at_s >= config.crash_after_s
        )
        if crash < config.crash_rate or overdue:
            os.kill(os.getpid(), signal.SIGKILL)
        delay_s = config.delay_s + more * config.delay_random_s
        if delay < config.delay_rate and delay_s:
            self._count("delayed")
            self._closed.wait(delay_s)
        if hang < config.hang_rate:
            self._count("hung")
            (self._closed if config.hang_until == "close" else threading.Event()).wait()
            raise l2.AdapterError(f"injected: this {verb} hung until the adapter was closed")
        if error < config.error_rate:
            self._count("failed")
            raise l2.AdapterError(f"injected: this {verb} fails")
        return lots

    def _count(self, what: str) -> None:
        with self._lock:
            self._happened[f"injected_{what}"] += 1


def _first(parts: Sequence[memoryview], length: int) -> list[memoryview]:
    """The parts of the first bytes."""
    cut: list[memoryview] = []
    for part in parts:
        if length:
            cut.append(part[:length])
            length -= len(cut[-1])
    return cut


def _flip(parts: Sequence[memoryview], at: int, bits: int) -> None:
    for part in parts:
        if at < len(part):
            part[at] ^= bits
            return
        at -= len(part)
