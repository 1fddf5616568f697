from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import Call, Client, DeadlineExceeded, Done, Message, Server, wire
from tests.bus.peer import Peer, eventually, request, with_body
from tests.bus.service import EPOCH, FAULTS, WAIT_S, Service, running, serving
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

MARKER = 1 << 40


def answered_once(service: Service, data: bytes) -> tuple[int, str]:
    """Send one frame: its only answer's kind, and its error code or decoded text."""
    with Peer(service.address) as peer:
        peer.send(data)
        peer.send(request(MARKER, Echo("afterwards")))
        answers = peer.answers_until(MARKER)
    assert [answer.call_id for answer in answers] == [wire.parse(data)[2]]
    (answer,) = answers
    return answer.kind, answer.error_code() if answer.kind == wire.ERROR else ""


# --- every well-framed request is answered exactly once ------------------------------------------


def test_a_request_is_answered_once_with_what_its_handler_returned(service: Service) -> None:
    with Peer(service.address) as peer:
        peer.send(request(3, Echo("hello")))
        peer.send(request(MARKER, Echo("")))
        (answer,) = peer.answers_until(MARKER)
    assert answer.data == wire.frame(wire.REPLY, 3, EPOCH, Text("hello"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_whose_handler_raises_is_answered_once(service: Service, fault: str) -> None:
    kind, code = answered_once(service, request(3, Raise(fault)))
    assert kind == wire.ERROR
    expected = fault.split()[0]
    known = {"Refused": Refused.code, "StaleEpoch": "stale_epoch"}
    assert code == known.get(expected, "handler_failed")


def test_the_sentence_of_a_failed_handler_names_message_and_exception(service: Service) -> None:
    with Client(service.address) as client, pytest.raises(Exception, match="raise failed") as fault:
        client.call(Raise("ValueError"))
    assert str(fault.value) == "raise failed in the server: ValueError: of the handler"


NESTED = b"\x91" * 1_000_000 + b"\xc0"

REFUSED = {
    "unknown message": (with_body(3, wire.encode(["fly", 1])), "unknown_message"),
    "long unknown message": (with_body(3, wire.encode(["\N{ROCKET}" * 99])), "unknown_message"),
    "other version": (with_body(3, b"", version=9), "wrong_version"),
    "stale epoch": (request(3, Echo("a"), epoch=EPOCH - 1), "stale_epoch"),
    "ill-typed field": (with_body(3, wire.encode(["echo", 1])), "bad_message"),
    "missing field": (with_body(3, wire.encode(["echo"])), "bad_message"),
    "no array": (with_body(3, wire.encode({"echo": 1})), "bad_message"),
    "empty array": (with_body(3, wire.encode([])), "bad_message"),
    "no body": (with_body(3, b""), "bad_message"),
    "no msgpack": (with_body(3, b"\xc1\xff\xff"), "bad_message"),
    "text that is no utf-8": (with_body(3, b"\x92\xa4echo\xa2\xff\xfe"), "bad_message"),
    "name that is no utf-8": (with_body(3, b"\x92\xa4\xff\xfe\xfd\xfc\xa0"), "bad_message"),
    "nested a million deep": (with_body(3, NESTED), "bad_message"),
    "field nested a million deep": (with_body(3, b"\x92\xa4echo" + NESTED), "bad_message"),
    "array of 2**32 items": (with_body(3, b"\xdd\xff\xff\xff\xff\xa4echo"), "bad_message"),
    "text of 4 GiB": (with_body(3, b"\x92\xa4echo\xdb\xff\xff\xff\xff"), "bad_message"),
}


@pytest.mark.parametrize(("data", "code"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_cannot_be_carried_out_is_answered_once_with_the_reason(
    service: Service, data: bytes, code: str
) -> None:
    assert answered_once(service, data) == (wire.ERROR, code)


def test_a_request_for_the_current_epoch_or_for_none_is_carried_out(service: Service) -> None:
    for epoch in (wire.NO_EPOCH, EPOCH):
        assert answered_once(service, request(3, Echo("a"), epoch=epoch)) == (wire.REPLY, "")


def test_an_answer_that_cannot_be_encoded_is_an_error_answer(address: str) -> None:
    def careless(call: Call, message: Echo) -> Text:
        return Text("a lone surrogate: \ud800")

    server = Server([Echo], epoch=EPOCH)
    server.on(Echo, careless)
    with running(server):
        server.bind(address)
        with Peer(address) as peer:
            peer.send(request(1, Echo("")))
            assert peer.receive().error_code() == "handler_failed"


def test_one_peer_may_use_a_call_id_twice_and_is_answered_twice(service: Service) -> None:
    with Peer(service.address) as peer:
        for _ in range(2):
            peer.send(request(8, Echo("")))
        peer.send(request(MARKER, Echo("")))
        assert [answer.call_id for answer in peer.answers_until(MARKER)] == [8, 8]


# --- what is not well framed costs the connection ------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([b""], id="an empty frame"),
        pytest.param([b"hello"], id="a raw frame"),
        pytest.param([request(1, Echo("a"))[:23]], id="half a header"),
        pytest.param([b"XY" + request(1, Echo("a"))[2:]], id="wrong magic"),
        pytest.param([b"", request(1, Echo("a"))], id="what a REQ socket sends"),
        pytest.param([request(1, Echo("a"))] * 1000, id="many frames"),
        pytest.param([wire.frame(wire.REPLY, 1, 0, Text("a"))], id="a reply"),
        pytest.param([wire.error_frame(1, 0, Refused("a"))], id="an error"),
        pytest.param([wire.frame(99, 1, 0, Echo("a"))], id="an unknown kind"),
    ],
)
def test_what_is_not_well_framed_costs_its_connection_and_nobody_elses(
    service: Service, frames: list[bytes]
) -> None:
    with Client(service.address) as other, Peer(service.address) as peer:
        assert other.call(Echo("before")) == Text("before")
        peer.send(*frames)
        assert peer.answers_until_dropped() == []
        assert service.server.counters.not_well_framed == 1
        assert other.call(Echo("after")) == Text("after")


def test_dropping_a_peer_that_has_left_does_not_hit_the_one_who_took_its_place(
    service: Service,
) -> None:
    """A new connection gets the descriptor number of the one that was closed before it."""
    with Client(service.address) as other, Client(service.address) as busy:
        stalled = busy.start(Stall())
        assert service.stalled.wait(WAIT_S)
        descriptors = len(os.listdir("/proc/self/fd"))
        with Peer(service.address) as peer:
            peer.socket.setsockopt(zmq.LINGER, -1)  # it leaves when its bytes have been taken
            peer.send(b"garbage")
        eventually(lambda: len(os.listdir("/proc/self/fd")) == descriptors)
        with Client(service.address) as newcomer:
            service.gate.set()
            stalled.result()
            assert other.call(Echo("a")) == Text("a")
            assert newcomer.call(Echo("b")) == Text("b")


def test_raw_bytes_on_the_unix_socket_disturb_nobody(service: Service) -> None:
    noise = random.Random(7)
    path = service.address.removeprefix("ipc://")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        noise.randbytes(65_536),
        greeting + noise.randbytes(65_536),
        b"\xff" * 65_536,
        b"",
    ):
        with socket.socket(socket.AF_UNIX) as raw, Client(service.address) as client:
            raw.connect(path)
            raw.sendall(data) if len(data) < 100 else raw.send(data)
            assert client.call(Echo("meanwhile")) == Text("meanwhile")


def test_a_message_larger_than_the_limit_costs_its_connection_and_nobody_elses(
    address: str,
) -> None:
    with serving(address, max_message_bytes=4096) as service:
        with Client(address) as other, Peer(address) as peer:
            fits = with_body(1, wire.encode(["echo", "x" * 5000]))[:4096]
            peer.send(fits)
            assert peer.receive().error_code() == "bad_message"  # truncated, but not too large
            peer.send(fits + b"x")
            assert peer.answers_until_dropped() == []
            assert other.call(Echo("a")) == Text("a")
        assert service.server.counters.messages == 2


FRAMES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        wire.HEADER.pack,
        st.sampled_from([wire.MAGIC, b"VK"]),
        st.sampled_from([wire.PROTOCOL_VERSION, 2]),
        st.integers(0, 5),
        st.sampled_from([0, 0, 0, 1]),
        st.integers(0, 1 << 30),
        st.sampled_from([wire.NO_EPOCH, EPOCH, 1]),
    ).flatmap(lambda header: st.binary(max_size=60).map(header.__add__)),
    st.recursive(
        st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ).flatmap(
        lambda body: st.sampled_from(["echo", "raise", "tell", "stall?", 3]).map(
            lambda name: with_body(5, wire.encode([name, body]))
        )
    ),
    st.sampled_from([Echo("a"), Raise("KeyError"), Tell("b"), Inflate(9)]).flatmap(
        lambda message: st.integers(0, 23 + len(wire.encode(message))).flatmap(
            lambda at: st.integers(0, 255).map(
                lambda byte: (whole := request(6, message))[:at] + bytes([byte]) + whole[at + 1 :]
            )
        )
    ),
)


def test_fuzz_whatever_bytes_arrive_the_server_answers_or_drops_and_serves_the_next_caller(
    service: Service,
) -> None:
    """Whatever bytes arrive, the server answers or drops, and serves the next caller."""

    @settings(max_examples=300, deadline=None, database=None)
    @given(frames=st.lists(FRAMES, min_size=1, max_size=1) | st.lists(FRAMES, max_size=4))
    def invariant(frames: list[bytes]) -> None:
        if not frames:
            return
        dropped_before = service.server.counters.not_well_framed
        with Peer(service.address) as peer:
            answers = peer.dropped_or_answered(frames, request(MARKER, Echo("marker")))
        kind = kind_if_well_framed(frames)
        if kind is None:
            assert answers is None
            assert service.server.counters.not_well_framed >= dropped_before + 1
        else:
            assert answers is not None
            own = [] if kind == wire.NOTICE else [wire.parse(frames[0])[2]]
            assert [answer.call_id for answer in answers] == [*own, MARKER]
        assert next_caller.call(Echo("next")) == Text("next")

    with Client(service.address) as next_caller:
        invariant()


def kind_if_well_framed(frames: list[bytes]) -> int | None:
    """REQUEST or NOTICE, or None if the server must drop the connection."""
    try:
        kind = wire.parse(frames[0])[1]
    except wire.NotWellFramed:
        return None
    return kind if len(frames) == 1 and kind in (wire.REQUEST, wire.NOTICE) else None


# --- deferred answers ----------------------------------------------------------------------------


def test_kept_calls_are_answered_later_and_in_any_order(service: Service) -> None:
    with Peer(service.address) as peer:
        for call_id in (1, 2, 3):
            peer.send(request(call_id, Keep(f"text {call_id}")))
        peer.send(request(9, AnswerKept((2, 0, 1))))
        answers = peer.answers_until(9)
    assert [answer.data for answer in answers] == [
        wire.frame(wire.REPLY, call_id, EPOCH, Text(f"text {call_id}")) for call_id in (3, 1, 2)
    ]


def test_a_kept_call_can_be_answered_with_an_error(service: Service) -> None:
    with Client(service.address) as client:
        kept = client.start(Keep("refuse"))
        client.call(AnswerKept((0,)))
        with pytest.raises(Refused, match="after a while"):
            kept.result()


def test_a_kept_call_of_a_peer_that_has_left_is_undeliverable(service: Service) -> None:
    with Client(service.address) as other:
        with Peer(service.address) as peer:
            peer.send(request(41, Keep("too late")))
            eventually(lambda: len(service.kept) == 1)
        eventually(lambda: open_connections(service) == 1)
        other.call(AnswerKept((0,)))
        assert service.undelivered == [41]
        assert service.server.counters.undeliverable == 1
        assert other.call(Echo("a")) == Text("a")


def open_connections(service: Service) -> int:
    """Accepted ends of the service's socket, of which the kernel keeps the path."""
    path = service.address.removeprefix("ipc://")
    with open("/proc/net/unix") as table:
        lines = [line.split() for line in table if line.rstrip().endswith(path)]
    return sum(fields[5] == "03" for fields in lines)


# --- notices -------------------------------------------------------------------------------------


def test_notices_are_counted_and_never_answered_also_when_they_fail(service: Service) -> None:
    with Peer(service.address) as peer:
        for text in ("a", "raise", "refuse", "b"):
            peer.send(wire.frame(wire.NOTICE, 1, wire.NO_EPOCH, Tell(text)))
        peer.send(wire.frame(wire.NOTICE, 1, EPOCH + 1, Tell("stale")))
        peer.send(wire.HEADER.pack(wire.MAGIC, 1, wire.NOTICE, 0, 1, 0) + b"\xc1")
        peer.send(request(MARKER, Echo("")))
        assert peer.answers_until(MARKER) == []
    assert service.told == ["a", "raise", "refuse", "b"]
    assert service.server.counters.messages == 7
    assert service.server.counters.errors == 4


# --- peers that do not read ----------------------------------------------------------------------


def test_a_peer_that_does_not_read_loses_answers_while_others_are_served(address: str) -> None:
    with (
        serving(address, queue_messages=4) as service,
        Peer(address, receive_hwm=1) as deaf,
        Client(address) as other,
    ):
        for call_id in range(1, 101):
            deaf.send(request(call_id, Inflate(100_000)))
        deaf.send(wire.frame(wire.NOTICE, 0, 0, Tell("all read")))
        eventually(lambda: service.told == ["all read"])
        assert other.call(Echo("a")) == Text("a")
        lost = service.undelivered.copy()
        assert len(lost) > 50
        assert service.server.counters.undeliverable == len(lost)
        got = [deaf.receive().call_id for _ in range(100 - len(lost))]
        assert sorted(got + lost) == list(range(1, 101))
        deaf.send(request(MARKER, Echo("it reads again")))
        assert deaf.receive().call_id == MARKER


def test_a_peer_that_does_not_read_is_dropped_like_any_other(address: str) -> None:
    with serving(address, queue_messages=4) as service, Peer(address, receive_hwm=1) as deaf:
        for call_id in range(100):
            deaf.send(request(call_id, Inflate(100_000)))
        deaf.send(b"garbage")
        eventually(lambda: service.server.counters.not_well_framed == 1)
        eventually(lambda: open_connections(service) == 0)


# --- declaring a server --------------------------------------------------------------------------


def test_a_server_without_a_handler_for_a_declared_message_refuses_to_start() -> None:
    server = Server([Echo, Keep, Tell], epoch=1)
    server.on(Keep, lambda_like_keep)
    with pytest.raises(TypeError, match="no handler for: echo, tell"):
        server.run()
    server.close()


def lambda_like_keep(call: Call, message: Keep) -> Text:
    return Text(message.text)


def of_another_message(call: Call, message: Keep) -> Text:
    return Text("")


def of_another_reply(call: Call, message: Echo) -> Done:
    return Done()


def test_a_handler_annotated_with_another_message_is_refused() -> None:
    server = Server([Echo], epoch=1)
    with pytest.raises(TypeError, match="of_another_message is annotated"):
        server.on(Echo, of_another_message)
    server.close()


def test_a_handler_annotated_with_another_reply_is_refused() -> None:
    server = Server([Echo], epoch=1)
    with pytest.raises(TypeError, match=r"of_another_reply.*Echo is answered with"):
        server.on(Echo, of_another_reply)  # type: ignore[arg-type]
    server.close()


def test_a_handler_of_a_message_that_was_not_declared_is_refused() -> None:
    server = Server([Echo], epoch=1)
    with pytest.raises(TypeError, match="Keep is not among this server's messages"):
        server.on(Keep, lambda_like_keep)
    server.close()


# --- the loop ------------------------------------------------------------------------------------


class Ticks:
    """Counts the calls of a timer; raises at the first one if asked to."""

    def __init__(self, *, fail: bool = False) -> None:
        self.times: list[float] = []
        self.thrice = threading.Event()
        self.fail = fail

    def __call__(self, now_s: float) -> None:
        self.times.append(now_s)
        if len(self.times) >= 3:
            self.thrice.set()
        if self.fail:
            raise ValueError("of a timer")


def test_a_timer_is_called_again_and_again_with_the_time(address: str) -> None:
    ticks = Ticks()
    service = Service(address)
    service.server.every(0.001, ticks)
    before_s = time.monotonic()
    with running(service.server):
        assert ticks.thrice.wait(WAIT_S)
    assert before_s < ticks.times[0] < ticks.times[1] < ticks.times[2] <= time.monotonic()


def test_a_timer_that_fails_is_called_again_and_ends_nothing(address: str) -> None:
    failing, other = Ticks(fail=True), Ticks()
    service = Service(address)
    service.server.every(0.001, failing)
    service.server.every(0.001, other)
    with running(service.server), Client(address) as client:
        assert failing.thrice.wait(WAIT_S)
        assert other.thrice.wait(WAIT_S)
        assert client.call(Echo("a")) == Text("a")


def test_timers_are_called_while_messages_keep_coming(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.server.TICK_S", 10 * WAIT_S)  # the loop is never idle
    ticks = Ticks()
    service = Service(address)
    service.server.every(0.001, ticks)
    with busy(service):
        assert ticks.thrice.wait(WAIT_S)


def test_a_server_stops_while_messages_keep_coming(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.server.TICK_S", 10 * WAIT_S)
    with busy(Service(address)):
        pass


@contextlib.contextmanager
def busy(service: Service) -> Iterator[None]:
    """Run the server in a thread, with calls coming in until it has stopped, which it must."""
    loop = threading.Thread(target=service.server.run)

    def talk() -> None:
        with Client(service.address) as client:
            while loop.is_alive():
                with contextlib.suppress(DeadlineExceeded):
                    client.call(Echo("busy"), timeout_s=0.01)

    talker = threading.Thread(target=talk)
    loop.start()
    talker.start()
    try:
        yield
    finally:
        service.server.stop()
        loop.join(WAIT_S)
        talker.join(WAIT_S)
        assert not loop.is_alive()
        service.server.close()


def test_a_socket_file_can_be_opened_by_its_owner_alone(service: Service) -> None:
    mode = os.stat(service.address.removeprefix("ipc://")).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_server_on_port_0_says_which_port_it_got() -> None:
    with serving("tcp://127.0.0.1:0") as service, Client(service.address) as client:
        assert service.address.startswith("tcp://127.0.0.1:")
        assert not service.address.endswith(":0")
        assert client.call(Echo("over tcp")) == Text("over tcp")


def test_every_message_and_every_error_is_counted(service: Service) -> None:
    messages: list[Message] = [Echo("a"), Raise("KeyError"), Raise("Refused"), Tell("b")]
    with Peer(service.address) as peer:
        for call_id, message in enumerate(messages, 1):
            kind = wire.NOTICE if isinstance(message, Tell) else wire.REQUEST
            peer.send(wire.frame(kind, call_id, 0, message))
        peer.send(request(MARKER, Echo("")))
        peer.answers_until(MARKER)
    assert service.server.counters.messages == 5
    assert service.server.counters.errors == 2
