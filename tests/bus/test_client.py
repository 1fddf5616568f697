from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from bus import (
    BadAddress,
    Client,
    DeadlineExceeded,
    Done,
    HandlerFailed,
    MessageTooLarge,
    StaleEpoch,
    Unavailable,
    UnknownMessage,
    WrongThread,
    wire,
)
from bus.dealer import MAX_OPEN_CALLS
from tests.bus.peer import eventually
from tests.bus.processes import run_script, serving_process
from tests.bus.service import EPOCH, WAIT_S, Service, serving
from tests.bus.vocabulary import (
    AnswerKept,
    Echo,
    Inflate,
    Keep,
    Raise,
    Refused,
    Stall,
    Tell,
    Text,
)

NEVER_S = 1000.0
"""A deadline that only a hanging test would meet; pytest's own time-out comes first."""


class Fly(Echo, frozen=True, tag="fly"):
    """A request that the tests' service does not know."""


# --- calls ---------------------------------------------------------------------------------------


def test_a_call_returns_the_reply_as_its_type(service: Service) -> None:
    with Client(service.address) as client:
        assert client.call(Echo("hello")) == Text("hello")
        assert client.call(Inflate(3)) == b"\0\0\0"
        assert client.call(AnswerKept(())) == Done()


def test_errors_come_back_as_themselves_with_sentence_and_values(service: Service) -> None:
    with Client(service.address) as client:
        with pytest.raises(Refused) as refused:
            client.call(Raise("Refused"))
        assert str(refused.value) == "refused 3 of 5"
        assert refused.value.values == {"refused": 3, "share": 0.6, "who": "me"}
        with pytest.raises(StaleEpoch) as stale:
            client.call(Raise("StaleEpoch"))
        assert stale.value.values == {"epoch": 1, "expected": 2}
        with pytest.raises(HandlerFailed, match="ValueError: of the handler"):
            client.call(Raise("ValueError"))
        assert client.call(Echo("and on")) == Text("and on")


def test_an_unknown_message_is_refused_by_name_and_with_what_is_known(service: Service) -> None:
    with Client(service.address) as client:
        with pytest.raises(UnknownMessage, match=r"'fly'; known are echo, raise"):
            client.call(Fly("a"))
        assert client.call(Echo("and on")) == Text("and on")


def test_a_client_of_another_epoch_is_told_both_epochs(service: Service) -> None:
    with Client(service.address) as client:
        client.epoch = EPOCH
        assert client.call(Echo("current")) == Text("current")
        client.epoch = EPOCH - 1
        with pytest.raises(StaleEpoch, match="say hello again") as stale:
            client.call(Echo("stale"))
        assert stale.value.values == {"epoch": EPOCH - 1, "expected": EPOCH}


def test_notices_arrive_in_order_and_before_the_calls_after_them(service: Service) -> None:
    with Client(service.address) as client:
        for number in range(500):
            client.notify(Tell(str(number)))
        client.call(Echo(""))
        assert service.told == [str(number) for number in range(500)]


def test_thousands_of_started_calls_are_answered_in_order(service: Service) -> None:
    with Client(service.address) as client:
        calls = [client.start(Echo(str(number))) for number in range(5000)]
        assert [call.result() for call in calls] == [Text(str(number)) for number in range(5000)]
    assert service.server.counters.undeliverable == 0


def test_the_results_of_started_calls_can_be_asked_for_in_any_order(service: Service) -> None:
    with Client(service.address) as client:
        calls = {number: client.start(Echo(str(number))) for number in range(300)}
        for number in reversed(calls):
            assert calls[number].result() == Text(str(number))


def test_calls_that_are_kept_are_answered_out_of_order(service: Service) -> None:
    with Client(service.address) as client:
        first, second = client.start(Keep("first")), client.start(Keep("second"))
        assert not first.done()
        client.call(AnswerKept((1,)))
        eventually(second.done)
        assert not first.done()
        assert second.result() == Text("second")


def test_one_call_too_many_waits_for_an_answer_to_an_earlier_one(service: Service) -> None:
    with Client(service.address) as client:
        calls = [client.start(Echo(str(number))) for number in range(MAX_OPEN_CALLS)]
        calls.append(client.start(Echo("one more")))
        assert calls[0].done()
        assert calls[-1].result() == Text("one more")


def test_connections_can_share_one_sequence_of_call_ids(service: Service) -> None:
    call_ids = itertools.count(1000)
    with (
        Client(service.address, call_ids=call_ids) as one,
        Client(service.address, call_ids=call_ids) as two,
    ):
        assert one.start(Echo("a")).call_id == 1000
        assert two.start(Echo("b")).call_id == 1001
        assert one.start(Echo("c")).call_id == 1002


# --- bounds --------------------------------------------------------------------------------------


def test_a_message_too_large_is_refused_with_both_sizes_and_not_sent(address: str) -> None:
    with serving(address, max_message_bytes=1000) as service:
        with Client(address, max_message_bytes=1000) as client:
            room = 1000 - len(wire.frame(wire.REQUEST, 1, 0, Echo("x" * 900))) + 900
            assert client.call(Echo("x" * room)) == Text("x" * room)
            with pytest.raises(MessageTooLarge, match=r"echo of 1001 bytes.*\(1000\)"):
                client.call(Echo("x" * (room + 1)))
            with pytest.raises(MessageTooLarge, match="tell of"):
                client.notify(Tell("x" * 1000))
            assert client.connected
            assert client.call(Echo("a")) == Text("a")
        assert service.server.counters.messages == 2


def test_an_answer_may_be_larger_than_a_message(service: Service) -> None:
    with Client(service.address) as client:
        assert len(client.call(Inflate(8 << 20))) == 8 << 20


# --- deadlines -----------------------------------------------------------------------------------


def test_a_late_answer_is_never_given_to_another_call(service: Service) -> None:
    with Client(service.address) as client:
        late = [client.start(Keep(f"late {number}")) for number in range(3)]
        for call in late:
            with pytest.raises(DeadlineExceeded, match=r"no answer to keep from .* in 0.01 s"):
                call.result(timeout_s=0.01)
        client.call(AnswerKept((2, 0, 1)))
        assert client.call(Echo("mine")) == Text("mine")
        started = client.start(Echo("mine too"))
        assert started.result() == Text("mine too")
        assert not any(call.done() for call in late), "late answers are thrown away"


def test_a_call_given_up_makes_room_for_another(service: Service) -> None:
    with Client(service.address) as client:
        calls = [client.start(Keep("for ever")) for _ in range(MAX_OPEN_CALLS)]
        for call in calls:
            with pytest.raises(DeadlineExceeded):
                call.result(timeout_s=0.0)
        assert client.call(Echo("a")) == Text("a")


def test_a_deadline_ends_one_call_and_not_the_connection(service: Service) -> None:
    with Client(service.address) as client:
        stalled = client.start(Stall())
        with pytest.raises(DeadlineExceeded):
            client.call(Echo("behind it"), timeout_s=0.01)
        service.gate.set()
        assert stalled.result() == Done()
        assert client.connected


# --- nobody there --------------------------------------------------------------------------------


def test_connecting_to_nobody_is_unavailable_at_once(address: str) -> None:
    with pytest.raises(Unavailable, match="no server at ipc://"):
        Client(address, connect_timeout_s=NEVER_S)


def test_connecting_to_the_socket_file_of_a_dead_server_is_unavailable_at_once(
    address: str,
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address.removeprefix("ipc://"))
    with pytest.raises(Unavailable):
        Client(address, connect_timeout_s=NEVER_S)


def test_connecting_to_a_closed_port_is_unavailable_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unavailable):
        Client(f"tcp://127.0.0.1:{port}", connect_timeout_s=NEVER_S)


def test_connecting_to_one_who_does_not_shake_hands_is_unavailable_in_time(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address.removeprefix("ipc://"))
        silent.listen()
        with pytest.raises(Unavailable, match=r"no connection within 0.05 s"):
            Client(address, connect_timeout_s=0.05)


def test_a_bad_address_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(BadAddress):
        Client("ipc://relative.sock")


def test_a_closed_client_is_unavailable(service: Service) -> None:
    client = Client(service.address)
    open_call = client.start(Keep("a"))
    client.close()
    client.close()
    assert not client.connected
    for attempt in (lambda: client.call(Echo("b")), lambda: client.notify(Tell("c"))):
        with pytest.raises(Unavailable, match="the client is closed"):
            attempt()
    with pytest.raises(Unavailable):
        open_call.result(timeout_s=NEVER_S)


@pytest.mark.timeout(30)
def test_a_killed_server_fails_the_calls_in_flight_at_once(address: str) -> None:
    with serving_process(address) as process, Client(address) as client:
        calls = [client.start(Keep(str(number))) for number in range(20)]
        client.call(Echo("all are kept"))
        process.kill()
        for call in calls:
            with pytest.raises(Unavailable, match="broke while the call was open"):
                call.result(timeout_s=NEVER_S)
        assert not client.connected


@pytest.mark.timeout(30)
def test_a_server_killed_under_a_waiting_call_fails_it_at_once(address: str) -> None:
    with serving_process(address) as process, Client(address) as client:

        def kill_after_a_while() -> None:
            with Client(address) as other:
                for _ in range(100):
                    other.call(Echo("a"))
            process.kill()

        killer = threading.Thread(target=kill_after_a_while)
        killer.start()
        with pytest.raises(Unavailable):
            client.call(Keep("b"), timeout_s=NEVER_S)
        killer.join()


def test_what_was_answered_before_the_server_died_is_still_delivered(address: str) -> None:
    with serving_process(address) as process, Client(address) as client:
        answered = client.start(Echo("in time"))
        eventually(answered.done)
        kept = client.start(Keep("too late"))
        process.kill()
        eventually(kept.done)
        assert answered.result() == Text("in time")
        with pytest.raises(Unavailable):
            kept.result()


@pytest.mark.timeout(30)
def test_a_server_that_takes_nothing_is_unavailable_and_not_a_hang(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.client.ROOM_TIMEOUT_S", 0.05)
    with serving_process(address) as process, Client(address) as client:
        os.kill(process.pid, signal.SIGSTOP)

        def talk() -> None:
            while True:
                client.notify(Tell("x" * 10_000))

        with pytest.raises(Unavailable, match=r"took no message for 0.05 s"):
            talk()


def test_a_client_of_a_dead_server_never_reaches_its_successor(address: str) -> None:
    with serving_process(address) as first, Client(address) as client:
        os.kill(first.pid, signal.SIGSTOP)
        for _ in range(200):
            client.notify(Tell("for the first"))
        pending = client.start(Echo("for the first"))
        first.kill()
        first.wait()
        with serving(address) as successor, Client(address) as other:
            assert other.call(Echo("a")) == Text("a")
            tries_until_s = time.monotonic() + 0.3  # libzmq's own reconnection takes 0.1 s
            while time.monotonic() < tries_until_s:
                with pytest.raises(Unavailable):
                    client.notify(Tell("for the first"))
                with pytest.raises(Unavailable):
                    client.call(Echo("for the first"), timeout_s=NEVER_S)
            with pytest.raises(Unavailable):
                pending.result(timeout_s=NEVER_S)
            assert other.call(Echo("b")) == Text("b")
            assert successor.server.counters.messages == 2
            assert successor.told == []


# --- one thread, one process ---------------------------------------------------------------------


def in_another_thread(action: Callable[[], Any]) -> BaseException | None:
    """What the action raised there."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as fault:
            raised.append(fault)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_a_second_thread_is_refused_before_it_touches_the_socket(service: Service) -> None:
    with Client(service.address) as client:
        pending = client.start(Echo("mine"))
        for attempt in (
            lambda: client.call(Echo("theirs")),
            lambda: client.start(Echo("theirs")),
            lambda: client.notify(Tell("theirs")),
            pending.result,
            pending.done,
        ):
            assert isinstance(in_another_thread(attempt), WrongThread)
        assert pending.result() == Text("mine")
    assert service.server.counters.messages == 1


def test_threads_with_a_client_each_get_their_own_answers(service: Service) -> None:
    def talk(name: str) -> None:
        with Client(service.address) as client:
            for number in range(200):
                text = f"{name} {number}"
                assert client.call(Echo(text)) == Text(text)

    faults: list[BaseException | None] = []
    threads = [
        threading.Thread(target=lambda n=name: faults.append(in_another_thread(lambda: talk(n))))
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert faults == [None] * 4


@pytest.mark.timeout(60)
def test_a_forked_child_is_refused_and_its_parent_unharmed(service: Service) -> None:
    run_script("forking", service.address)
    assert service.told == []


def test_a_client_can_have_a_context_of_its_own(service: Service) -> None:
    with zmq.Context() as context, Client(service.address, context=context) as client:
        assert client.call(Echo("a")) == Text("a")
