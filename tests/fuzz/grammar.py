"""Messages with any values, and frames that are nearly right: from a seed, without end."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import inspect

from bus import Message, wire
from bus.schema import Notice, message_name
from lmcache_mp import messages as m
from lmcache_mp.messages import KEY_BYTES
from lmcache_mp.namespace import Namespace
from lmcache_mp.tiering import messages as l2

KINDS: tuple[type[Message], ...] = (*m.ALL, *l2.ALL)

HOT = (m.PrepareStore, m.CommitStore, m.PrepareRetrieve, m.Release, m.Pin, m.Lookup)
RARE = (m.Drain, m.Goodbye, m.Hello, m.Clear, m.Check, m.Delete)
WEIGHTED = [kind for kind in KINDS if kind not in RARE] * 4 + [*HOT] * 16 + [*RARE]
"""So that leases are had, and end in all the ways there are."""

INTEGERS = (0, 1, 2, 3, 5, 255, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, -1, -(1 << 63))
FLOATS = (0.0, 0.5, 1.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "a", "\0", "\N{ROCKET}" * 9, "../../etc/passwd", "%s%n{}", "x" * 5000)
SIZES = (0, 1, 4, 31, 32, 33, 64, 96, 320, 8192 * 32, 8193 * 32)
POOL = 12
"""Keys, and namespaces, that are drawn again and again."""

NESTED = b"\x91" * 1_000_000 + b"\xc0"


class Grammar:
    """What one peer may think of. `last_id` is the id of its last call."""

    def __init__(self, seed: int, kinds: Collection[type[Message]] = WEIGHTED) -> None:
        self.rng = random.Random(seed)
        self.last_id = 0
        self._shapes = [(kind, inspect.type_info(kind)) for kind in kinds]

    def well_framed(self, epoch: int = wire.NO_EPOCH) -> bytes:
        """A frame that is to be answered, whatever is in it."""
        draw = self.rng.random()
        if draw < 0.92:
            return self.request(epoch)
        header = self.header(epoch)
        if draw < 0.97:
            return header + self.mutated(self.request()[wire.HEADER.size :])
        if draw < 0.999:
            return header + self.rng.randbytes(self.rng.randrange(200))
        return header + self.rng.choice(
            [
                NESTED,
                b"\x92\xa6lookup" + NESTED,
                b"\xdd\xff\xff\xff\xff\xa6lookup",
                b"\x93\xa6lookup\x01\xc6\xff\xff\xff\xff",
            ]
        )

    def ill_framed(self) -> list[bytes]:
        """One message that costs its sender the connection."""
        return self.rng.choice(
            [
                [b""],
                [b"KV"],
                [self.rng.randbytes(self.rng.randrange(1, 64))],
                [b"X" + self.request()[1:]],
                [b"", self.request()],
                [self.request(), self.request()],
            ]
        )

    def request(self, epoch: int = wire.NO_EPOCH) -> bytes:
        """A well-framed message of some kind; its fields may be anything."""
        kind, shape = self.rng.choice(self._shapes)
        assert isinstance(shape, inspect.StructType)
        body = [message_name(kind), *(self.value(field) for field in shape.fields)]
        if self.rng.random() < 0.02:
            del body[self.rng.randrange(len(body)) :]
        notice = issubclass(kind, Notice) != (self.rng.random() < 0.02)
        return self.header(epoch, wire.NOTICE if notice else wire.REQUEST) + wire.encode(body)

    def header(self, epoch: int, kind: int = wire.REQUEST) -> bytes:
        """Mostly of a new call; sometimes one of an open, a finished or a later one."""
        draw = self.rng.random()
        if draw > 0.05:
            self.last_id += 1
        call_id = self.last_id if draw > 0.01 else self.rng.choice(INTEGERS[:-2])
        if self.rng.random() < 0.02:
            epoch = self.rng.getrandbits(64)
        return wire.HEADER.pack(wire.MAGIC, wire.PROTOCOL_VERSION, kind, 0, call_id, epoch)

    def mutated(self, data: bytes) -> bytes:
        """With a byte changed, taken out, or all after it cut off."""
        at = self.rng.randrange(len(data))
        byte = bytes([self.rng.randrange(256)])
        return data[:at] + self.rng.choice([byte + data[at + 1 :], data[at + 1 :], b""])

    def value(self, field: inspect.Field) -> Any:
        """Of a field: mostly what it is declared as."""
        if self.rng.random() < 0.01:
            return self.rng.choice([None, 1, "a", b"b", [], [[[]]], {}, 1.5, float("nan"), True])
        match field.name:
            case "keys":
                return self.keys()
            case "lease_id" | "work_id":
                if self.rng.random() < 0.2:
                    return self.rng.randrange(self.last_id + 3)
                return max(1, self.last_id - self.rng.randrange(12))
            case "namespace_id":
                return self.rng.choice([1, 1, 1, 2, 3, 4, 5, 6, 0, -1, 2049, 1 << 40])
            case "namespace":
                return msgspec.to_builtins(self.namespace())
            case "shard":
                return self.rng.choice((0, 0, 0, 1, 127, 128))
            case "tenant":
                return bytes(self.rng.choice((0, 0, 8, 9)))
            case "hold_s":
                return self.rng.choice((0.0, 0.0, 0.5, 600.0, 601.0))
            case "written":
                return self.rng.choice([None, None, None, bytes(4), self.rng.randbytes(5)])
        return self.of(field.type)

    def of(self, shape: inspect.Type) -> Any:
        """A value of a type, its bounds aside."""
        match shape:
            case inspect.Metadata():
                return self.of(shape.type)
            case inspect.IntType():
                return self.rng.choice(INTEGERS)
            case inspect.FloatType():
                return self.rng.choice(FLOATS)
            case inspect.BoolType():
                return self.rng.random() < 0.5
            case inspect.StrType():
                return self.rng.choice(TEXTS)
            case inspect.BytesType():
                return self.rng.randbytes(self.rng.choice((0, 1, 8, 16, 17)))
            case inspect.EnumType():
                return self.rng.randrange(-1, 7)
            case inspect.UnionType():
                return self.of(self.rng.choice(shape.types))
            case inspect.VarTupleType() | inspect.ListType():
                return [self.of(shape.item_type) for _ in range(self.rng.randrange(4))]
            case inspect.DictType():
                size = self.rng.randrange(4)
                return {self.of(shape.key_type): self.of(shape.value_type) for _ in range(size)}
            case inspect.StructType():
                return {field.encode_name: self.value(field) for field in shape.fields}
        return None

    def keys(self) -> bytes:
        """Some of a small pool, often the same twice, and buffers that are no keys."""
        if self.rng.random() < 0.1:
            return bytes(self.rng.choice(SIZES))
        drawn = self.rng.choices(range(POOL), k=self.rng.randrange(1, 9))
        return b"".join(key.to_bytes(KEY_BYTES, "big") for key in drawn)

    def namespace(self) -> Namespace:
        """One of a small pool; some do not fit in L1, some contradict each other."""
        shards = self.rng.choice((1, 1, 1, 1, 2, 2, 128))
        return Namespace(
            model=f"fuzz {self.rng.randrange(POOL)}",
            dtype="u8",
            shard_bytes=self.rng.choice((1, 4096, 4096, 4097, 65536, 1 << 40)),
            num_shards=shards,
        )
