"""The prompts of a chaos run: few enough that clients meet on the same chunks all the time."""

from __future__ import annotations

from array import array

from lmcache_mp.client import ChunkKeys, Namespace, chunk_keys

SHARD_BYTES = 64 << 10
CHUNK_TOKENS = 4
SIBLINGS = 4
"""So many prompts share the first half of their chunks."""

NAMESPACES = (
    Namespace(model="whole", dtype="u8", chunk_tokens=CHUNK_TOKENS, shard_bytes=SHARD_BYTES),
    Namespace(
        model="two ranks",
        dtype="u8",
        chunk_tokens=CHUNK_TOKENS,
        shard_bytes=SHARD_BYTES,
        num_shards=2,
    ),
)
PROMPTS = (48, 24)
"""Per namespace."""
CHUNKS = (12, 8)
"""Of each of its prompts."""

WORKING_SET_BYTES = sum(
    namespace.chunk_bytes * prompts * chunks
    for namespace, prompts, chunks in zip(NAMESPACES, PROMPTS, CHUNKS, strict=True)
)
"""At most: what prompts share is counted for each."""


def prompt_keys(place: int, number: int) -> ChunkKeys:
    """Keys of a prompt of the namespace at `place`."""
    half, family = CHUNKS[place] // 2, number // SIBLINGS
    ids = (2 * family if index < half else 2 * number + 1 for index in range(CHUNKS[place]))
    tokens = array("I", (token for token in ids for _ in range(CHUNK_TOKENS)))
    return chunk_keys(NAMESPACES[place], tokens)


def private_keys(place: int, salt: str) -> ChunkKeys:
    """Keys of a prompt that nobody else has."""
    return chunk_keys(NAMESPACES[place], range(CHUNKS[place] * CHUNK_TOKENS), salt=salt)


def all_prompts() -> list[tuple[int, ChunkKeys]]:
    """Every prompt that clients share, with its place."""
    return [
        (place, prompt_keys(place, number))
        for place in range(len(NAMESPACES))
        for number in range(PROMPTS[place])
    ]


def of_shard(key: bytes, shard: int) -> bytes:
    """What a shard's bytes follow from: shards of one chunk differ in every byte's place."""
    return bytes([key[0] ^ shard]) + key[1:]
