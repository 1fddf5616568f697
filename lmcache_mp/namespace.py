"""What the shape and meaning of a slot depend on."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_SHARDS = 128


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed per inference engine instance; registered once per connection.

    Equal namespaces share chunks; namespaces that differ in any field never do.
    """

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    revision: Annotated[str, Meta(max_length=128)] = ""
    dtype: Annotated[str, Meta(min_length=1, max_length=64)]
    layout: Annotated[str, Meta(max_length=256)] = ""
    """How bytes are arranged within a shard; free text that both ends understand."""
    chunk_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 256
    shard_bytes: Annotated[int, Meta(ge=1, le=1 << 40)]
    """Bytes that one worker keeps of one chunk."""
    num_shards: Annotated[int, Meta(ge=1, le=MAX_SHARDS)] = 1

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, all shards side by side."""
        return self.shard_bytes * self.num_shards

    @property
    def digest(self) -> bytes:
        """16 bytes that name this namespace in records and envelopes."""
        return hashlib.sha256(b"lmcache-mp namespace 1\0" + encode(self)).digest()[:16]

    @property
    def name(self) -> Namespace:
        """All but the size of a shard: two that differ in nothing else cannot both be true."""
        return msgspec.structs.replace(self, shard_bytes=1)


encode = msgspec.msgpack.Encoder(order="deterministic").encode
decode = msgspec.msgpack.Decoder(Namespace).decode


def validated(namespace: Namespace) -> Namespace:
    """The namespace itself if its fields are within bounds, else `ValueError` naming the field.

    msgspec checks bounds when it decodes, not when a struct is constructed.
    """
    try:
        return decode(encode(namespace))
    except msgspec.ValidationError as fault:
        raise ValueError(f"namespace {namespace}: {fault}") from None
