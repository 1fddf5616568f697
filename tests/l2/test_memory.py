"""The example keeps what was used last, up to its capacity. (Its contract: `test_contract`.)"""

from __future__ import annotations

from lmcache_mp.l2 import ENVELOPE_BYTES
from lmcache_mp.l2.memory import Adapter, Config
from lmcache_mp.units import Size

A, B, C, D = (bytes((letter,)) * 32 for letter in b"abcd")


def adapter(capacity_pages: int) -> Adapter:
    return Adapter(Config(capacity=Size(capacity_pages * ENVELOPE_BYTES)))


def pages(number: int) -> list[memoryview]:
    return [memoryview(bytearray(ENVELOPE_BYTES)) for _ in range(number)]


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache = adapter(3)
    for key in (A, B, C):
        cache.store(key, pages(1))
    assert cache.load(A, pages(1)) == ENVELOPE_BYTES
    cache.store(D, pages(1))
    assert cache.lookup([A, B, C, D]) == [True, False, True, True]
    cache.store(B, pages(2))
    assert cache.lookup([A, B, C, D]) == [False, True, False, True]
    assert cache.figures() == {"used_bytes": 3 * ENVELOPE_BYTES, "objects": 2}


def test_an_object_that_is_larger_than_the_capacity_is_not_kept() -> None:
    cache = adapter(2)
    cache.store(A, pages(3))
    assert cache.lookup([A]) == [False]
    assert cache.figures() == {"used_bytes": 0, "objects": 0}


def test_what_is_stored_twice_counts_once() -> None:
    cache = adapter(2)
    for _ in range(3):
        cache.store(A, pages(1))
    assert cache.figures() == {"used_bytes": ENVELOPE_BYTES, "objects": 1}
    cache.delete([A, A, B])
    assert cache.figures() == {"used_bytes": 0, "objects": 0}
