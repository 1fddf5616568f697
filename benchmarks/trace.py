"""A production trace: which prompts came when, and which of their blocks they share.

The format is that of the Mooncake paper (FAST 2025): one JSON object a line with `timestamp` (ms)
and `hash_ids`, one id per block of 512 prompt tokens; equal id = equal prefix up to that block. A
prompt's last block may be only partly filled; here it counts as a whole one, as in the paper.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

BLOCK_TOKENS = 512


class TraceRequest(msgspec.Struct, frozen=True):
    """One request, as far as a cache is concerned."""

    timestamp: int
    """Milliseconds since the beginning of the trace."""
    hash_ids: tuple[int, ...]


class BadTrace(Exception):
    """The file is no trace; the sentence names the line."""


def read_trace(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """The first `limit` requests of a trace file."""
    decode = msgspec.json.Decoder(TraceRequest).decode
    requests = []
    with open(path, "rb") as lines:
        for number, line in enumerate(itertools.islice(lines, limit), 1):
            try:
                requests.append(decode(line))
            except msgspec.DecodeError as fault:
                raise BadTrace(f"{path}, line {number}: {fault}") from None
    return requests


def prompt_tokens(hash_ids: Iterable[int]) -> array[int]:
    """A prompt that shares with others what its ids say: block `i` is [512 i, 512 (i + 1))."""
    tokens = array("I")
    for hash_id in hash_ids:
        tokens.extend(range(hash_id * BLOCK_TOKENS, (hash_id + 1) * BLOCK_TOKENS))
    return tokens


def unlimited_hit_blocks(requests: Sequence[TraceRequest]) -> int:
    """Blocks that a cache with room for everything would have: of each prompt, the longest prefix
    that an earlier one had too.
    """
    seen: set[int] = set()
    hits = 0
    for request in requests:
        hits += sum(1 for _ in itertools.takewhile(seen.__contains__, request.hash_ids))
        seen.update(request.hash_ids)
    return hits


def total_blocks(requests: Sequence[TraceRequest]) -> int:
    """Blocks of all prompts together."""
    return sum(len(request.hash_ids) for request in requests)
