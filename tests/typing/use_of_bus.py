"""`bus`, as somebody else's server and client use it: a reply's type follows from its request."""

from __future__ import annotations

from typing import assert_type

import msgspec

import bus
from bus.aio import AsyncClient


class Sum(msgspec.Struct, frozen=True):
    total: int


class Add(bus.Request[Sum], frozen=True):
    terms: tuple[int, ...]


class Forget(bus.Notice, frozen=True):
    what: str


def add(call: bus.Call, message: Add) -> Sum:
    return Sum(sum(message.terms))


def forget(call: bus.Call, message: Forget) -> None:
    assert_type(message.what, str)


def serve() -> None:
    server = bus.Server([Add, Forget], epoch=1)
    server.on(Add, add)
    server.on_notice(Forget, forget)
    assert_type(server.counters.messages, int)
    server.on(Add, forget)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    server.on(Forget, add)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def ask(address: str) -> None:
    with bus.Client(address) as client:
        assert_type(client, bus.Client)
        assert_type(client.call(Add((1, 2))), Sum)
        assert_type(client.call(Add((1, 2)), 0.5).total, int)
        pending = client.start(Add((1,)))
        assert_type(pending, bus.PendingCall[Sum])
        assert_type(pending.result(), Sum)
        assert_type(client.notify(Forget("it")), None)
        client.call(Forget("it"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        client.notify(Add((1,)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        client.call(Add("12"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def ask_async(address: str) -> None:
    client = await AsyncClient.connect(address)
    assert_type(await client.call(Add((1,))), Sum)
