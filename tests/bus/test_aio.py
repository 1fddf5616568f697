from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec, assert_type

import pytest

from bus import (
    DeadlineExceeded,
    HandlerFailed,
    MessageTooLarge,
    StaleEpoch,
    Unavailable,
)
from bus.aio import AsyncClient
from tests.bus.processes import serving_process
from tests.bus.service import EPOCH, WAIT_S, Service
from tests.bus.vocabulary import AnswerKept, Echo, Keep, Raise, Refused, Stall, Tell, Text

NEVER_S = 1000.0
"""A deadline that only a hanging test would meet; pytest's own time-out comes first."""

P = ParamSpec("P")


def in_an_event_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test; nothing it started may be left over."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def run_and_look_around() -> None:
            await test(*args, **kwargs)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks were left over"

        asyncio.run(run_and_look_around(), debug=True)

    return run


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[AsyncClient]:
    """A client, closed on leaving; it must not remember calls that have ended."""
    client = await AsyncClient.connect(address)
    try:
        yield client
    finally:
        await client.close()
    assert not client._waiting


async def eventually(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds, which it must within `WAIT_S`."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@in_an_event_loop
async def test_a_call_returns_the_reply_as_its_type(service: Service) -> None:
    async with connected(service.address) as client:
        assert client.connected
        reply = await client.call(Echo("hello"))
        assert_type(reply, Text)
        assert reply == Text("hello")


@in_an_event_loop
async def test_many_calls_at_once_each_get_their_own_answer(service: Service) -> None:
    async with connected(service.address) as client:
        texts = [str(number) for number in range(1000)]
        replies = []
        for start in range(0, 1000, 100):
            calls = [client.call(Echo(text)) for text in texts[start : start + 100]]
            replies += await asyncio.gather(*calls)
        assert replies == [Text(text) for text in texts]


@in_an_event_loop
async def test_calls_are_answered_out_of_order(service: Service) -> None:
    async with connected(service.address) as client, asyncio.TaskGroup() as group:
        kept = [group.create_task(client.call(Keep(str(number)))) for number in range(3)]
        await eventually(lambda: len(service.kept) == 3)
        await client.call(AnswerKept((2, 0, 1)))
        assert await asyncio.gather(*kept) == [Text("0"), Text("1"), Text("2")]


@in_an_event_loop
async def test_errors_come_back_as_themselves_with_values(service: Service) -> None:
    async with connected(service.address) as client:
        with pytest.raises(Refused) as refused:
            await client.call(Raise("Refused"))
        assert refused.value.values == {"refused": 3, "share": 0.6, "who": "me"}
        with pytest.raises(HandlerFailed, match="KeyError"):
            await client.call(Raise("KeyError"))
        client.epoch = EPOCH + 1
        with pytest.raises(StaleEpoch):
            await client.call(Echo("a"))


@in_an_event_loop
async def test_a_cancelled_call_does_not_disturb_the_others(service: Service) -> None:
    async with connected(service.address) as client, asyncio.TaskGroup() as group:
        kept = [group.create_task(client.call(Keep(str(number)))) for number in range(4)]
        await eventually(lambda: len(service.kept) == 4)
        kept[0].cancel()
        kept[2].cancel()
        await asyncio.wait([kept[0], kept[2]])
        await client.call(AnswerKept((0, 1, 2, 3)))
        assert [await kept[1], await kept[3]] == [Text("1"), Text("3")]
        assert await client.call(Echo("mine")) == Text("mine")


@in_an_event_loop
async def test_a_late_answer_is_never_given_to_another_call(service: Service) -> None:
    async with connected(service.address) as client:
        for _ in range(3):
            with pytest.raises(DeadlineExceeded, match=r"no answer to keep .* in 0.01 s"):
                await client.call(Keep("late"), timeout_s=0.01)
        await client.call(AnswerKept((2, 1, 0)))
        assert await client.call(Echo("mine")) == Text("mine")


@in_an_event_loop
async def test_a_deadline_ends_one_call_and_not_the_connection(service: Service) -> None:
    async with connected(service.address) as client:
        stalled = asyncio.create_task(client.call(Stall()))
        await eventually(service.stalled.is_set)
        with pytest.raises(DeadlineExceeded):
            await client.call(Echo("behind it"), timeout_s=0.01)
        service.gate.set()
        await stalled
        assert client.connected


@in_an_event_loop
async def test_notices_arrive_in_order_and_before_the_calls_after_them(service: Service) -> None:
    async with connected(service.address) as client:
        for number in range(100):
            await client.notify(Tell(str(number)))
        await client.call(Echo(""))
        assert service.told == [str(number) for number in range(100)]


@in_an_event_loop
async def test_a_message_too_large_is_refused_and_not_sent(service: Service) -> None:
    async with connected(service.address) as client:
        with pytest.raises(MessageTooLarge):
            await client.call(Echo("x" * (2 << 20)))
        assert await client.call(Echo("a")) == Text("a")
    assert service.server.counters.messages == 1


@in_an_event_loop
async def test_connecting_to_nobody_is_unavailable_at_once(address: str) -> None:
    with pytest.raises(Unavailable, match="nobody listens"):
        await AsyncClient.connect(address, timeout_s=NEVER_S)


@in_an_event_loop
async def test_connecting_to_one_who_does_not_shake_hands_is_unavailable_in_time(
    address: str,
) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address.removeprefix("ipc://"))
        silent.listen()
        with pytest.raises(Unavailable, match=r"no connection within 0.05 s"):
            await AsyncClient.connect(address, timeout_s=0.05)


@pytest.mark.timeout(30)
@in_an_event_loop
async def test_a_killed_server_fails_the_calls_in_flight_at_once(address: str) -> None:
    with serving_process(address) as process:
        async with connected(address) as client:
            kept = [
                asyncio.create_task(client.call(Keep(str(number)), timeout_s=NEVER_S))
                for number in range(20)
            ]
            await client.call(Echo("all are kept"))
            process.kill()
            outcomes = await asyncio.gather(*kept, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 20
            await client.wait_lost()
            assert not client.connected
            with pytest.raises(Unavailable, match="not connected"):
                await client.call(Echo("a"))
            with pytest.raises(Unavailable):
                await client.notify(Tell("a"))


@in_an_event_loop
async def test_closing_a_client_ends_its_open_calls(service: Service) -> None:
    async with connected(service.address) as client:
        kept = asyncio.create_task(client.call(Keep("a"), timeout_s=NEVER_S))
        await eventually(lambda: len(service.kept) == 1)
        await client.close()
        with pytest.raises(Unavailable, match="the client was closed"):
            await kept
        await client.close()


@in_an_event_loop
async def test_a_client_of_a_dead_server_never_reaches_its_successor(address: str) -> None:
    with serving_process(address) as first:
        async with connected(address) as client:
            first.kill()
            first.wait()
            await client.wait_lost()
            with serving_process(address):
                async with connected(address) as other:
                    assert await other.call(Echo("a")) == Text("a")
                    with pytest.raises(Unavailable):
                        await client.call(Echo("b"), timeout_s=NEVER_S)
