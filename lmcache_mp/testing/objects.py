"""Objects of one adapter, lent to it as the worker lends them, and compared byte for byte."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
from collections.abc import Callable
from types import TracebackType

from lmcache_mp.l2 import ENVELOPE_BYTES, AnyAdapter
from lmcache_mp.testing.promises import (
    CLOSE,
    DELETE,
    LENT,
    LOAD,
    OTHER_LENGTH,
    STORE,
    eventually,
    promise,
    that,
)

PAGE = ENVELOPE_BYTES

_AROUND = 0xA5
_AWKWARD = b"\0\n\r /\\.:*'\"%[{\xff\x80"


class Opened:
    """An adapter that is open inside the `with`, and what was stored there by these checks."""

    def __init__(self, open_adapter: Callable[[], AnyAdapter]) -> None:
        self._open = open_adapter
        self._stored: set[bytes] = set()

    def __enter__(self) -> Opened:
        self.adapter = self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception) if kind else promise(CLOSE):
            self.adapter.delete(sorted(self._stored))
            self.adapter.close()

    def reopen(self) -> None:
        """Close it, and open it on the same place."""
        with promise(CLOSE):
            self.adapter.close()
        self.adapter = self._open()

    def store(self, key: bytes, *shape: int) -> None:
        """Store the key's own bytes, lent for just as long."""
        self._stored.add(key)
        expected = content_of(key, sum(shape))
        with Parts(*shape) as parts:
            parts.fill(expected)
            with promise(STORE):
                self.adapter.store(key, [part.toreadonly() for part in parts.views])
            with promise(LENT):
                that(parts.joined() == expected, "store changed the bytes that it was to keep")
            parts.fill(bytes(len(expected)))

    def delete(self, key: bytes) -> None:
        """Delete one object, after which it is gone."""
        with promise(DELETE):
            self.adapter.delete([key])
            that(not any(self.adapter.lookup([key])), "lookup found an object that was deleted")

    def expect_whole(self, key: bytes, *shape: int, sentence: str = LOAD) -> None:
        """It is there, byte for byte, whatever parts it is read into."""
        with promise(sentence):
            that(self._load(key, *shape), "load returned None, though the object was stored")

    def expect_whole_or_none(self, key: bytes, *shape: int) -> None:
        """What a reader may see of an object that is being stored or deleted."""
        with promise(STORE):
            self._load(key, *shape)

    def _load(self, key: bytes, *shape: int) -> bool:
        """Whether there is an object; if so, it is whole."""
        with Parts(*shape) as parts:
            got = self.adapter.load(key, parts.views)
            if got is None:
                return False
            length = sum(shape)
            that(got == length, f"load returned {got!r} for an object of {length} bytes")
            expected, loaded = content_of(key, length), parts.joined()
            that(loaded == expected, lambda: _difference(expected, loaded))
            return True


class Parts:
    """Parts as the worker has them: on pages of one mapping, with bytes of others around each."""

    def __init__(self, *shape: int) -> None:
        self._mapping = mmap.mmap(-1, sum(shape) + PAGE * (len(shape) + 1))
        self._mapping.write(bytes((_AROUND,)) * len(self._mapping))
        self.views: list[memoryview] = []
        self._around: list[memoryview] = []
        at = 0
        for length in shape:
            self._around.append(memoryview(self._mapping)[at : at + PAGE])
            self.views.append(memoryview(self._mapping)[at + PAGE : at + PAGE + length])
            at += PAGE + length
        self._around.append(memoryview(self._mapping)[at:])

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is not None:
            return  # whoever raised may still have views
        with promise(OTHER_LENGTH):
            untouched = all(bytes(page) == bytes((_AROUND,)) * PAGE for page in self._around)
            that(untouched, "bytes beyond a part were written")
        with promise(LENT):
            for view in (*self.views, *self._around):
                view.release()
            eventually(self._close, lambda: "parts were still in use after the call had returned")

    def fill(self, content: bytes) -> None:
        """Lay bytes out over the parts."""
        at = 0
        for view in self.views:
            view[:] = content[at : at + len(view)]
            at += len(view)

    def joined(self) -> bytes:
        """What is in the parts."""
        return b"".join(self.views)

    def _close(self) -> bool:
        try:
            self._mapping.close()
        except BufferError:
            gc.collect()
            return False
        return True


def new_key() -> bytes:
    """Nobody else's; its first half is what trips those who take keys for text."""
    return _AWKWARD + os.urandom(32 - len(_AWKWARD))


def content_of(key: bytes, length: int) -> bytes:
    """An object's bytes; no two pages of them are alike, nor those of two keys."""
    block = random.Random(key).randbytes(2 * PAGE - 1)  # noqa: S311 - keeps no secret
    return (block * (length // len(block) + 1))[:length]


def _difference(content: bytes, loaded: bytes) -> str:
    at = next(
        i for i in range(0, len(content), PAGE) if content[i : i + PAGE] != loaded[i : i + PAGE]
    )
    return f"load gave other bytes than were stored, from page {at // PAGE} on"
