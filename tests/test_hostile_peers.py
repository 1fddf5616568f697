"""A real engine among peers that misbehave over real sockets: it lives, it forgets them, and a
well-behaved client beside them finds its bytes as it left them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient
from tests.footprint import Footprint
from tests.fuzz.peers import Peers
from tests.waiting import wait_until
from tests.world import EngineProcess

FRAMES = 100_000
GROWTH_BYTES = 32 << 20
"""What malloc may keep of what it once gave out."""


@dataclass
class Verifier:
    """Stores and retrieves all the time, and looks at every byte."""

    verified_chunks: int = 0
    wrong_chunks: int = 0
    faults: list[str] = field(default_factory=list[str])
    _end: threading.Event = field(default_factory=threading.Event)

    def run(self, connect: Callable[[], CacheClient]) -> None:
        try:
            with connect() as cache:
                for prompt in range(1 << 30):
                    if self._end.is_set():
                        return
                    self._one(cache, prompt % 50)
        except Exception as fault:
            self.faults.append(repr(fault))

    def stop(self) -> None:
        self._end.set()

    def _one(self, cache: CacheClient, prompt: int) -> None:
        keys = cache.chunk_keys(range(prompt * 1000, prompt * 1000 + 16))
        with cache.store(keys) as batch:
            for index, view in batch.slots():
                view[:] = bytes([prompt, index]) * (len(view) // 2)
        with cache.retrieve(keys) as hit:
            for index, view in hit.slots():
                self.verified_chunks += 1
                self.wrong_chunks += bytes(view) != bytes([prompt, index]) * (len(view) // 2)


@contextmanager
def verifying(engine: EngineProcess) -> Iterator[Verifier]:
    verifier = Verifier()
    thread = threading.Thread(target=verifier.run, args=(engine.client,))
    thread.start()
    try:
        yield verifier
    finally:
        verifier.stop()
        thread.join(30)
    assert verifier.faults == []
    assert verifier.wrong_chunks == 0


def pid_of(engine: EngineProcess) -> int:
    assert engine.process is not None
    return engine.process.pid


def footprint(engine: EngineProcess) -> Footprint:
    return Footprint.of(pid_of(engine), engine.run_dir.clients)


@pytest.mark.timeout(240)
def test_a_hundred_thousand_hostile_messages_change_nothing_for_the_others(
    start_engine: Callable[..., EngineProcess],
) -> None:
    engine = start_engine(l1_size="64MiB", log_level="error")
    peers = Peers(engine.run_dir, seed=11)
    for kind in (peers.many_frames, peers.large_message, peers.large_stream):
        kind()
    while peers.messages < FRAMES // 20:
        peers.burst()
    wait_until(lambda: engine.status().clients == [])
    before = footprint(engine)
    with verifying(engine) as verifier:
        while peers.messages < FRAMES:
            peers.burst()
        seen = verifier.verified_chunks
        wait_until(lambda: verifier.verified_chunks > seen)
    wait_until(lambda: engine.status().clients == [])
    report: m.CheckReport = engine.call(m.Check())
    assert report.faults == []
    status = engine.status()
    assert status.processes["engine"].pid == pid_of(engine)
    assert verifier.verified_chunks > 1000
    assert status.bus.messages > FRAMES / 4
    assert status.bus.errors > 1000
    assert status.bus.not_well_framed > 10
    assert status.bus.undeliverable > 10
    assert status.l1.leased_chunks == 0
    assert set(peers.sent) >= {"speaks", "vanishes", "never_reads", "chooses_its_id", "raw_bytes"}
    wait_until(lambda: footprint(engine).descriptors <= before.descriptors + 1)
    wait_until(lambda: footprint(engine).client_files == 0, timeout_s=30)  # some 100 a second
    after = footprint(engine)
    assert after.private_bytes < before.private_bytes + GROWTH_BYTES
