"""One chunk, one object: what the adapter gets and gives is sealed, tried again, and verified."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from lmcache_mp.l2 import ENVELOPE_BYTES, AdapterError, AnyAdapter
from lmcache_mp.messages import SLOT_UNIT_BYTES
from lmcache_mp.tiering.envelope import Rejected, seal, verify
from lmcache_mp.tiering.messages import ABSENT, DONE, FAILED
from lmcache_mp.worker.health import Health

T = TypeVar("T")
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


@dataclass(slots=True)
class Figures:
    """What one thread did."""

    stored_objects: int = 0
    skipped_objects: int = 0
    """Were there already."""
    loaded_objects: int = 0
    rejected_objects: int = 0
    """Torn, foreign, changed: removed, and answered as a miss."""


class Objects:
    """The adapter as one thread uses it. No method raises what the adapter raises."""

    def __init__(self, adapter: AnyAdapter, health: Health, retries: int) -> None:
        self.figures = Figures()
        self._adapter = adapter
        self._health = health
        self._page = memoryview(mmap.mmap(-1, ENVELOPE_BYTES))
        self._tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(retries + 1),
            wait=tenacity.wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )

    def lookup(self, keys: Sequence[bytes]) -> bytes:
        """An outcome for each key."""
        found = self._tried(lambda: self._adapter.lookup(keys), "lookup")
        if found is None or len(found) != len(keys):
            return bytes((FAILED,)) * len(keys)
        return bytes(DONE if there else ABSENT for there in found)

    def delete(self, keys: Sequence[bytes]) -> bytes:
        """An outcome for each key."""
        done = self._tried(lambda: (self._adapter.delete(keys), True), "delete")
        return bytes((FAILED if done is None else DONE,)) * len(keys)

    def clear(self) -> bytes:
        """One outcome."""

        def delete_all() -> bool:
            batch: list[bytes] = []
            for key in self._adapter.scan():
                batch.append(key)
                if len(batch) == 512:
                    self._adapter.delete(batch)
                    batch = []
            self._adapter.delete(batch)
            return True

        return bytes((FAILED if self._tried(delete_all, "clear") is None else DONE,))

    def store(self, key: bytes, namespace: bytes, slot: memoryview, chunk_bytes: int) -> int:
        """The outcome; `slot` is the chunk and the rest of its last page."""

        def write() -> bool:
            seal(self._page, key, namespace, slot[:chunk_bytes])
            self._adapter.store(key, (self._page.toreadonly(), slot))
            return True

        if self._tried(write, "store") is None:
            return FAILED
        self.figures.stored_objects += 1
        return DONE

    def load(self, key: bytes, namespace: bytes, slot: memoryview, chunk_bytes: int) -> int:
        """The outcome; nothing that is not just this chunk is ever DONE."""
        length = self._tried(lambda: self._loaded(key, slot), "load")
        if length is None:
            return FAILED
        if length < 0:
            return ABSENT
        try:
            if length != ENVELOPE_BYTES + len(slot):
                raise Rejected(f"it has {length} bytes, not {ENVELOPE_BYTES + len(slot)}")
            verify(self._page, key, namespace, slot[:chunk_bytes])
        except Rejected as fault:
            self._warn("object rejected and removed key=%s: %s", key.hex(), fault)
            self.figures.rejected_objects += 1
            self.delete((key,))
            return ABSENT
        self.figures.loaded_objects += 1
        return DONE

    def _loaded(self, key: bytes, slot: memoryview) -> int:
        """Its length; -1 for none."""
        length = self._adapter.load(key, (self._page, slot))
        return -1 if length is None else length

    def _tried(self, verb: Callable[[], T], name: str) -> T | None:
        """What it returned; None if it failed for good."""

        def once() -> T:
            try:
                result = verb()
            except Exception as fault:
                self._health.failed(fault)
                raise
            self._health.succeeded()
            return result

        try:
            return self._tries(once)
        except Exception as fault:  # an adapter may raise anything: it costs a tier, not a request
            self._warn("%s failed: %s", name, str(fault) or type(fault).__name__)
            return None

    def _warn(self, sentence: str, *values: object) -> None:
        self._health.log.say(time.monotonic(), logging.WARNING, sentence, *values)


def padded(chunk_bytes: int) -> int:
    """A chunk's bytes, and the rest of its last page."""
    return -(-chunk_bytes // SLOT_UNIT_BYTES) * SLOT_UNIT_BYTES


def _may_pass(fault: BaseException) -> bool:
    return isinstance(fault, Exception) and not (isinstance(fault, AdapterError) and fault.lasting)
