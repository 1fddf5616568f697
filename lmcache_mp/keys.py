"""From token ids to chunk keys: a chained, cryptographic hash, equal in every process.

A chunk's key is SHA-256 over the key before it and the chunk's own tokens (and extra keys); the
chain starts from a seed over the namespace and the request's identity. So a key stands for the
whole prefix up to the chunk's end, and what must not share never does. (Chained block hashes are
vLLM's way to name a prefix; its default seed differs from process to process, ours cannot.)
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from typing_extensions import Buffer

from lmcache_mp.messages import KEY_BYTES
from lmcache_mp.namespace import Namespace

TokenIds = Buffer | Sequence[int]
"""A C-contiguous buffer of 32- or 64-bit integers (array, numpy, torch on the CPU), packed
little-endian uint32 as bytes, or a sequence of ints."""

ExtraKeys = Sequence[tuple[int, bytes | str]]
"""`(token position, what is there besides the token)`, for instance a multimodal item's hash."""

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """The keys of a prompt's whole chunks, in order; a prompt shorter than a chunk has none."""

    buffer: bytes
    """32 bytes a key, one after the other: what travels."""
    tenant: bytes = b""
    """Short digest of the salt; the salt itself stays in the client."""

    def __len__(self) -> int:
        return len(self.buffer) // KEY_BYTES

    def __getitem__(self, index: int) -> bytes:
        if not -len(self) <= index < len(self):
            raise IndexError(f"key {index} of {len(self)}")
        start = (index % len(self)) * KEY_BYTES
        return self.buffer[start : start + KEY_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        return (self.buffer[at : at + KEY_BYTES] for at in range(0, len(self.buffer), KEY_BYTES))

    def first(self, chunks: int) -> ChunkKeys:
        """The keys of the first so many chunks."""
        return ChunkKeys(self.buffer[: chunks * KEY_BYTES], self.tenant)


def tenant_of(salt: str) -> bytes:
    """8 bytes that stand for a cache_salt where it must not be seen; empty for the empty salt."""
    return hashlib.sha256(b"lmcache-mp tenant 1\0" + salt.encode()).digest()[:8] if salt else b""


def chunk_keys(
    namespace: Namespace,
    token_ids: TokenIds,
    *,
    salt: str = "",
    lora: str = "",
    extra: ExtraKeys = (),
) -> ChunkKeys:
    """The keys of all whole chunks of a prompt.

    `salt`, `lora` and `extra` are the request's identity: prompts that differ in one share nothing
    (for `extra`: from its position on). Raises `ValueError` for what is no token id, position or
    text; it shows nothing of them but the position.
    """
    tokens = _packed(token_ids)
    step = namespace.chunk_tokens * 4
    extras = _by_chunk(extra, namespace.chunk_tokens)
    _encoded("salt", salt)
    _encoded("lora", lora)
    seed = _canonical(["lmcache-mp keys 1", namespace.digest, salt, lora])
    key = hashlib.sha256(seed).digest()
    keys: list[bytes] = []
    for start in range(0, len(tokens) - step + 1, step):
        digest = hashlib.sha256(key)
        digest.update(tokens[start : start + step])
        if extras and (here := extras.get(start // step)):
            digest.update(_canonical(here))
        key = digest.digest()
        keys.append(key)
    return ChunkKeys(b"".join(keys), tenant_of(salt))


def _packed(token_ids: TokenIds) -> memoryview:
    """The ids as bytes, four each, without copying where they lie so already."""
    if isinstance(token_ids, Buffer):
        view = memoryview(token_ids)
        if isinstance(token_ids, bytes | bytearray) and len(view) % 4 == 0:
            return view
        if view.format in ("I", "<I") and view.c_contiguous:
            return view.cast("B")
        if view.format not in ("i", "<i", "Q", "q", "L", "l", "<Q", "<q"):
            raise ValueError(
                f"token ids in a buffer of format {view.format!r} and {view.nbytes} bytes: expected"
                " uint32 or int64 values"
            )
        token_ids = view.tolist()
    try:
        return memoryview(array("I", token_ids)).cast("B")
    except (OverflowError, TypeError) as fault:
        raise ValueError(f"token ids must be integers from 0 to 2**32 - 1: {fault}") from None


def _encoded(what: str, text: object) -> bytes:
    """UTF-8 of a part of the request's identity, of which no exception may show anything."""
    if not isinstance(text, str):
        raise ValueError(f"{what}: must be text, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as fault:  # it carries the text, so it must not be the cause
        reason = fault.reason
    raise ValueError(f"{what}: cannot be written as UTF-8: {reason}")


def _by_chunk(extra: ExtraKeys, chunk_tokens: int) -> dict[int, list[tuple[int, bytes]]]:
    chunks: dict[int, list[tuple[int, bytes]]] = {}
    for position, value in extra:
        if position < 0:
            raise ValueError(f"extra key at token position {position}: must not be negative")
        what = f"extra key at token position {position}"
        data = value if isinstance(value, bytes) else _encoded(what, value)
        chunks.setdefault(position // chunk_tokens, []).append((position % chunk_tokens, data))
    return {chunk: sorted(values) for chunk, values in chunks.items()}
