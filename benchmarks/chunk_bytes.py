"""What stands in a chunk: bytes that its key determines, written and checked at memory speed."""

from __future__ import annotations

import random

PATTERN_BYTES = 32 << 20
WORD_BYTES = 8


class ChunkBytes:
    """The bytes of all chunks of one size.

    A chunk is a window of one pseudo-random pattern, and its key says where the window begins. No
    word of 8 bytes occurs twice in the pattern, so each word of a chunk tells the chunk and the
    place that it belongs to; two keys share a window once in four million.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._pattern = memoryview(random.Random(20250225).randbytes(PATTERN_BYTES + chunk_bytes))
        self._landing = bytearray(chunk_bytes)
        self._landing_view = memoryview(self._landing)

    def write(self, key: bytes, slot: memoryview) -> None:
        """Copy the chunk's bytes into a slot."""
        slot[:] = self._expected(key)

    def read(self, slot: memoryview) -> None:
        """Copy a slot's bytes out, as an inference engine would; `wrong_bytes` looks at them."""
        self._landing_view[:] = slot

    def wrong_bytes(self, key: bytes) -> int:
        """How many of the bytes read last are not the chunk's."""
        expected = self._expected(key)
        if self._landing == expected:  # bytearray on the left: a memcmp of the two buffers
            return 0
        return sum(found != wanted for found, wanted in zip(self._landing, expected, strict=True))

    def _expected(self, key: bytes) -> memoryview:
        words = PATTERN_BYTES // WORD_BYTES
        start = int.from_bytes(key[:8], "little") % words * WORD_BYTES
        return self._pattern[start : start + self._chunk_bytes]
