"""What one thread can see of an adapter; each check stands for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmcache_mp.l2 import AnyAdapter
from lmcache_mp.testing.objects import PAGE, Opened, Parts, new_key
from lmcache_mp.testing.promises import (
    DELETE,
    FIGURES,
    LOOKUP,
    MISS,
    NEVER_REPLACED,
    NOT_LONG,
    OTHER_LENGTH,
    SCAN,
    eventually,
    promise,
    that,
)

_MANY = 512


def check_misses(adapter: AnyAdapter) -> None:
    """What is not there is not there, for every verb."""
    keys = [new_key() for _ in range(3)]
    with promise(LOOKUP):
        for asked in ([], keys[:1], keys):
            expect_lookup(adapter, asked, [False] * len(asked))
    with promise(MISS), Parts(PAGE, PAGE) as parts:
        got = adapter.load(keys[0], parts.views)
        that(got is None, f"load of a key without an object returned {got!r}, not None")
    with promise(DELETE):
        adapter.delete([])
        adapter.delete(keys)


def check_shapes(opened: Opened, chunk_bytes: int) -> None:
    """Every division into parts is stored, and read back by itself and as one part."""
    body = max(chunk_bytes // PAGE, 1) * PAGE
    for shape in ((PAGE,), (PAGE, PAGE), (PAGE, 3 * PAGE, 2 * PAGE), (body,), (PAGE, body)):
        key = new_key()
        opened.store(key, *shape)
        opened.expect_whole(key, *shape)
        opened.expect_whole(key, sum(shape))
        with promise(LOOKUP):
            expect_lookup(opened.adapter, [key], [True])
        with promise(NEVER_REPLACED):
            opened.store(key, *shape)
            opened.expect_whole(key, *shape)
        opened.delete(key)


def check_other_lengths(opened: Opened, chunk_bytes: int) -> None:
    """A torn or foreign object is told from its length, and writes beyond no part."""
    key, length = new_key(), 3 * PAGE
    opened.store(key, PAGE, 2 * PAGE)
    for shape in ((PAGE,), (PAGE, PAGE), (2 * PAGE,), (PAGE, 3 * PAGE), (PAGE, chunk_bytes)):
        with promise(OTHER_LENGTH), Parts(*shape) as parts:
            got = opened.adapter.load(key, parts.views)
            that(got == length, f"load of {length} bytes into {sum(shape)} returned {got!r}")
    opened.expect_whole(key, PAGE, 2 * PAGE)
    opened.delete(key)


def check_many(opened: Opened) -> None:
    """Some of many keys are there; what is scanned is deleted meanwhile, as a clear does it."""
    adapter, keys = opened.adapter, [new_key() for _ in range(_MANY)]
    keys.append(keys[0][:-1] + bytes((keys[0][-1] ^ 1,)))
    there = set(keys[::16])
    for key in there:
        opened.store(key, PAGE)
    with promise(LOOKUP):
        expect_lookup(adapter, keys, [key in there for key in keys])
    with promise(SCAN):
        next(iter(adapter.scan()), None)  # whoever asks may have enough
        that(there <= set(scan(adapter)), "scan did not give the keys of all objects")
        for key in scan(adapter):
            if key in there:
                adapter.delete([key])
        that(not there & set(scan(adapter)), "scan gave keys of objects that were deleted")
    with promise(DELETE):
        adapter.delete(keys)
        expect_lookup(adapter, keys, [False] * len(keys))
        with Parts(PAGE) as parts:
            got = adapter.load(keys[0], parts.views)
            that(got is None, f"load of an object that was deleted returned {got!r}, not None")


def check_figures(adapter: AnyAdapter) -> None:
    """Names and numbers."""
    with promise(FIGURES):
        for name, figure in adapter.figures().items():
            that(type(name) is str, f"figures() has the name {name!r}")
            that(type(figure) in (int, float), f"figures() has {figure!r} as {name}")


def check_reopening(opened: Opened, persistent: bool) -> None:
    """What was stored survives a close, if it is said to; in any case it is whole."""
    key = new_key()
    opened.store(key, PAGE, 4 * PAGE)
    opened.reopen()
    if not persistent:
        opened.expect_whole_or_none(key, PAGE, 4 * PAGE)
        return
    with promise(NOT_LONG):
        eventually(
            lambda: all(opened.adapter.lookup([key])) and key in set(scan(opened.adapter)),
            lambda: "an object of before was not found after the adapter was closed and opened",
        )
    opened.expect_whole(key, PAGE, 4 * PAGE)


def scan(adapter: AnyAdapter) -> Iterator[bytes]:
    """Its keys, each of which must be one."""
    for key in adapter.scan():
        that(type(key) is bytes and len(key) == 32, f"scan gave {key!r}, not a key of 32 bytes")
        yield key


def expect_lookup(adapter: AnyAdapter, keys: Sequence[bytes], expected: Sequence[bool]) -> None:
    """An answer for each key, in order, and the right one."""
    answer = list(adapter.lookup(keys))
    that(len(answer) == len(keys), f"lookup of {len(keys)} keys gave {len(answer)} answers")
    wrong = [i for i, has in enumerate(answer) if has != expected[i]]
    that(
        not wrong,
        lambda: (
            f"lookup of {len(keys)} keys said {answer[wrong[0]]!r} of one that is "
            f"{'there' if expected[wrong[0]] else 'not there'}"
        ),
    )
