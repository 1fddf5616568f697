"""Every field of a request whose length may vary has a bound of its own, beside the frame's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from bus import Message
from bus.schema import message_name
from lmcache_mp import messages
from lmcache_mp.errors import BadKeys
from lmcache_mp.l1.tier import split_keys
from lmcache_mp.messages import KEY_BYTES, MAX_KEYS
from lmcache_mp.tiering import messages as l2_messages

KINDS: tuple[type[Message], ...] = (*messages.ALL, *l2_messages.ALL)

ELSEWHERE = {
    "keys": "bounded by split_keys, whose sentence says what to do about it",
}


class Part(msgspec.Struct):
    text: str
    numbers: list[int]


class Whole(msgspec.Struct):
    parts: dict[str, Part] | None
    anything: Any


def unbounded(shape: inspect.Type, where: str) -> Iterator[str]:
    """The parts of a type that are as long as their sender likes."""
    match shape:
        case inspect.Metadata():
            yield from unbounded(shape.type, where)
        case inspect.StructType():
            for field in shape.fields:
                yield from unbounded(field.type, f"{where}.{field.name}")
        case inspect.UnionType():
            for kind in shape.types:
                yield from unbounded(kind, where)
        case inspect.StrType() | inspect.BytesType():
            if shape.max_length is None:
                yield where
        case inspect.VarTupleType() | inspect.ListType() | inspect.SetType():
            if shape.max_length is None:
                yield where
            yield from unbounded(shape.item_type, f"{where}[]")
        case inspect.DictType():
            if shape.max_length is None:
                yield where
            yield from unbounded(shape.key_type, f"{where}.key")
            yield from unbounded(shape.value_type, f"{where}[]")
        case (
            inspect.IntType()
            | inspect.FloatType()
            | inspect.BoolType()
            | inspect.NoneType()
            | inspect.EnumType()
        ):
            return
        case _:
            yield f"{where}: {shape}"


@pytest.mark.parametrize("kind", KINDS, ids=message_name)
def test_every_field_that_may_be_long_is_bounded(kind: type[Message]) -> None:
    found = list(unbounded(inspect.type_info(kind), message_name(kind)))
    assert [where for where in found if where.rpartition(".")[2] not in ELSEWHERE] == []


def test_the_walk_finds_what_is_not_bounded() -> None:
    found = [where.partition(":")[0] for where in unbounded(inspect.type_info(Whole), "whole")]
    parts = ["whole.parts", "whole.parts.key", "whole.parts[].text", "whole.parts[].numbers"]
    assert found == [*parts, "whole.anything"]


def test_keys_are_bounded_with_a_sentence_that_names_the_limit() -> None:
    assert len(split_keys(bytes(MAX_KEYS * KEY_BYTES))) == MAX_KEYS
    with pytest.raises(
        BadKeys, match=f"{MAX_KEYS + 1} keys in one message are more than {MAX_KEYS}"
    ):
        split_keys(bytes((MAX_KEYS + 1) * KEY_BYTES))
