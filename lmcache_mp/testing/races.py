"""What several threads can see of an adapter that they use at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from lmcache_mp.testing.checks import scan
from lmcache_mp.testing.objects import PAGE, Opened, new_key
from lmcache_mp.testing.promises import NEVER_REPLACED, PATIENCE_S, STORE, THREADS, promise, that


def check_one_key_at_once(opened: Opened, chunk_bytes: int) -> None:
    """Several threads store one key while others read it: they find nothing, or all of it, and
    always all of it once somebody has stored it.
    """
    shape = (PAGE, max(chunk_bytes // PAGE, 1) * PAGE)
    for _ in range(8):
        key, stored = new_key(), threading.Semaphore(0)

        def store(key: bytes = key, stored: threading.Semaphore = stored) -> None:
            try:
                opened.store(key, *shape)
            finally:
                stored.release()

        def read(key: bytes = key, stored: threading.Semaphore = stored) -> None:
            while not stored.acquire(blocking=False):
                opened.expect_whole_or_none(key, *shape)
            opened.expect_whole(key, *shape, sentence=STORE)

        def read_again(key: bytes = key, stored: threading.Semaphore = stored) -> None:
            while not stored.acquire(blocking=False):
                opened.expect_whole(key, *shape, sentence=NEVER_REPLACED)

        _at_once([store, store, store, read, read, read])
        _at_once([store, store, read_again, read_again])
        opened.delete(key)


def check_everything_at_once(opened: Opened, chunk_bytes: int) -> None:
    """All verbs on the same few keys: nothing raises, nothing torn is seen."""
    keys, rounds = [new_key() for _ in range(4)], range(12)
    body = max(chunk_bytes // PAGE, 1) * PAGE
    lookups = [opened.adapter.lookup, opened.adapter.delete]

    def store() -> None:
        for turn in rounds:
            opened.store(keys[turn % 4], PAGE, body)

    def load() -> None:
        for turn in rounds:
            opened.expect_whole_or_none(keys[turn % 4], PAGE, body)

    def ask() -> None:
        for turn in rounds:
            lookups[turn % 2](keys[turn % 3 :])

    def walk() -> None:
        for _ in rounds:
            list(scan(opened.adapter))

    _at_once([store, store, load, load, load, ask, ask, walk])
    for key in keys:
        opened.store(key, PAGE, body)
        opened.expect_whole(key, PAGE, body)
        opened.delete(key)


def _at_once(bodies: Sequence[Callable[[], None]]) -> None:
    """Run each in a thread of its own, from the same moment on; raises what one raised first."""
    start, faults = threading.Barrier(len(bodies)), list[BaseException]()

    def run(body: Callable[[], None]) -> None:
        start.wait()
        try:
            body()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + 3 * PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    with promise(THREADS):
        if faults:
            raise faults[0]
        running = sum(thread.is_alive() for thread in threads)
        that(not running, f"{running} of {len(threads)} threads still wait in it")
