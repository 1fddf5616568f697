"""Addresses that require a key: real sockets, and libzmq's own word for who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import zmq
from zmq.utils import z85

from bus import Client, ClientCurve, Server, ServerCurve, Unavailable
from bus.aio import AsyncClient
from bus.curve import ZAP_ADDRESS
from tests.bus.peer import eventually
from tests.bus.service import WAIT_S, Service, running
from tests.bus.vocabulary import Echo, Text

NEVER_S = 1000.0
"""A deadline that only a hanging test would meet; pytest's own time-out comes first."""

ZMTP_1 = b"\x01\x00\x06\x00hello"
ZMTP_2 = b"\xff" + bytes(7) + b"\x01\x7f\x01\x05\x00\x00" + b"\x00\x05hello"
HTTP = b"GET / HTTP/1.1\r\nHost: cache\r\n\r\n"
NULL_3 = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)


@dataclass
class Guarded:
    """A service with a socket file for who can open it, and a port for who has a key."""

    service: Service
    tcp: str
    server_key: bytes
    allowed: set[bytes] = field(default_factory=set)

    @property
    def ipc(self) -> str:
        return self.service.address

    @property
    def refused(self) -> int:
        return self.service.server.counters.refused

    def key(self, *, allowed: bool = True, server_key: bytes = b"") -> ClientCurve:
        public, secret = zmq.curve_keypair()
        if allowed:
            self.allowed.add(public)
        return ClientCurve(public, secret, server_key or self.server_key)


@contextlib.contextmanager
def guarded_service(address: str) -> Iterator[Guarded]:
    public, secret = zmq.curve_keypair()
    service = Service(address)
    guarded = Guarded(service, "", public)
    curve = ServerCurve(secret, lambda key: key in guarded.allowed)
    guarded.tcp = service.server.bind("tcp://127.0.0.1:0", curve=curve)
    with running(service.server):
        yield guarded


@pytest.fixture
def guarded(address: str) -> Iterator[Guarded]:
    with guarded_service(address) as guarded:
        yield guarded


def serves(address: str, curve: ClientCurve | None = None) -> bool:
    with Client(address, curve=curve) as client:
        return client.call(Echo("hello")) == Text("hello")


def has_doorkeeper() -> bool:
    return "bus doorkeeper" in {thread.name for thread in threading.enumerate()}


def test_who_is_on_the_list_is_served(guarded: Guarded) -> None:
    assert serves(guarded.tcp, guarded.key())
    assert guarded.refused == 0


def test_a_socket_file_beside_it_needs_no_key(guarded: Guarded) -> None:
    assert serves(guarded.ipc)
    assert serves(guarded.tcp, guarded.key())
    assert serves(guarded.ipc)


def test_every_address_speaks_what_it_was_bound_with(address: str) -> None:
    public, secret = zmq.curve_keypair()
    curve = ServerCurve(secret, lambda key: True)
    service, port = Service(address), "tcp://127.0.0.1:0"
    binds = [service.server.bind(port, curve=keys) for keys in (None, curve, None, curve)]
    with running(service.server):
        for bound in (address, binds[0], binds[2]):
            assert serves(bound)
        for bound in (binds[1], binds[3]):
            assert serves(bound, ClientCurve(*zmq.curve_keypair(), public))
            with pytest.raises(Unavailable, match="require"):
                Client(bound, connect_timeout_s=NEVER_S)


def test_an_unknown_key_is_refused_at_once_counted_and_logged_with_key_and_address(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = guarded.key(allowed=False)
    with pytest.raises(Unavailable, match="not on the server's list") as refusal:
        Client(guarded.tcp, connect_timeout_s=NEVER_S, curve=stranger)
    assert stranger.public_key.decode() in str(refusal.value)
    eventually(lambda: guarded.refused == 1)
    line = f"127.0.0.1: the key {stranger.public_key.decode()} is not on the list"
    eventually(lambda: line in caplog.text)
    assert caplog.text.count(line) == 1
    assert stranger.secret_key.decode() not in caplog.text


def test_no_key_is_refused_at_once_and_counted(guarded: Guarded) -> None:
    with pytest.raises(Unavailable, match="require"):
        Client(guarded.tcp, connect_timeout_s=NEVER_S)
    eventually(lambda: guarded.refused == 1)
    assert serves(guarded.tcp, guarded.key())


def test_a_plain_dealer_is_not_answered(guarded: Guarded) -> None:
    messages = guarded.service.server.counters.messages
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    with contextlib.closing(dealer):
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        dealer.connect(guarded.tcp)
        with contextlib.suppress(zmq.Again):  # refused already
            dealer.send(b"hello", zmq.DONTWAIT)
        eventually(lambda: guarded.refused == 1)
        assert not dealer.poll(0)
    assert guarded.service.server.counters.messages == messages


def test_a_key_for_another_server_is_refused_at_once_and_counted(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    other_server = zmq.curve_keypair()[0]
    with pytest.raises(Unavailable, match="may be for another server"):
        Client(guarded.tcp, connect_timeout_s=NEVER_S, curve=guarded.key(server_key=other_server))
    eventually(lambda: guarded.refused == 1)
    eventually(lambda: "it takes this server for one with another key" in caplog.text)


def test_a_key_for_an_address_that_takes_none_is_refused_at_once(guarded: Guarded) -> None:
    with pytest.raises(Unavailable, match=r"takes no keys|may be for another server"):
        Client(guarded.ipc, connect_timeout_s=NEVER_S, curve=guarded.key())
    eventually(lambda: guarded.refused == 1)


def test_a_key_taken_off_the_list_is_let_in_no_more_and_one_put_on_it_is(
    guarded: Guarded,
) -> None:
    revoked, new = guarded.key(), guarded.key(allowed=False)
    with Client(guarded.tcp, curve=revoked) as inside:
        guarded.allowed.clear()
        guarded.allowed.add(new.public_key)
        with pytest.raises(Unavailable, match="not on the server's list"):
            Client(guarded.tcp, curve=revoked)
        assert serves(guarded.tcp, new)
        assert inside.call(Echo("still here")) == Text("still here")


def test_a_list_that_cannot_be_read_admits_nobody_and_everybody_again_afterwards(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    class List:
        readable = False

        def __call__(self, key: bytes) -> bool:
            if not self.readable:
                raise PermissionError(13, "Permission denied", "/keys")
            return True

    allowed, (server_key, secret) = List(), zmq.curve_keypair()
    service = Service(address)
    tcp = service.server.bind("tcp://127.0.0.1:0", curve=ServerCurve(secret, allowed))
    key = ClientCurve(*zmq.curve_keypair(), server_key)
    with running(service.server):
        with pytest.raises(Unavailable, match="not on the server's list"):
            Client(tcp, curve=key)
        eventually(lambda: "refused a peer: it could not be found out" in caplog.text)
        allowed.readable = True
        assert serves(tcp, key)
        assert serves(address)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_its_doorkeeper_a_server_lets_nobody_in_by_key(address: str) -> None:
    def ends_the_thread(key: bytes) -> bool:
        raise SystemExit

    public, secret = zmq.curve_keypair()
    service = Service(address)
    tcp = service.server.bind("tcp://127.0.0.1:0", curve=ServerCurve(secret, ends_the_thread))
    key = ClientCurve(*zmq.curve_keypair(), public)
    with running(service.server):
        with pytest.raises(Unavailable):
            Client(tcp, connect_timeout_s=0.1, curve=key)
        eventually(lambda: not has_doorkeeper())
        for _ in range(3):
            with pytest.raises(Unavailable):
                Client(tcp, connect_timeout_s=NEVER_S, curve=key)
        assert serves(address)
        eventually(lambda: service.server.counters.refused >= 3)


def test_the_asyncio_client_has_keys_too(guarded: Guarded) -> None:
    async def scenario() -> None:
        client = await AsyncClient.connect(guarded.tcp, curve=guarded.key())
        assert await client.call(Echo("hello")) == Text("hello")
        await client.close()
        with pytest.raises(Unavailable, match="not on the server's list"):
            await AsyncClient.connect(
                guarded.tcp, timeout_s=NEVER_S, curve=guarded.key(allowed=False)
            )
        with pytest.raises(Unavailable, match="require"):
            await AsyncClient.connect(guarded.tcp, timeout_s=NEVER_S)

    asyncio.run(scenario())


def test_what_is_said_can_not_be_read_on_the_wire(guarded: Guarded) -> None:
    said = b"a sentence that nobody else may read"
    with eavesdropper(guarded.tcp) as (address, heard), Client(address, curve=guarded.key()) as c:
        assert c.call(Echo(said.decode())) == Text(said.decode())
    with eavesdropper(guarded.ipc) as (address, heard_in_the_open), Client(address) as c:
        assert c.call(Echo(said.decode())) == Text(said.decode())
    assert heard
    assert said not in b"".join(heard)
    assert said in b"".join(heard_in_the_open)


@contextlib.contextmanager
def eavesdropper(address: str) -> Iterator[tuple[str, list[bytes]]]:
    """A port that passes one connection on to `address`, and what it saw of it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def relay(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    heard.append(data)
                    target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with connected(address) as onward, listening.accept()[0] as inward:
                back = threading.Thread(target=relay, args=(onward, inward))
                back.start()
                relay(inward, onward)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}", heard
        thread.join(WAIT_S)


def connected(address: str) -> socket.socket:
    """A raw connection to an address of the bus."""
    if address.startswith("ipc://"):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(address.removeprefix("ipc://"))
        return raw
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), WAIT_S)


@pytest.mark.parametrize("greeting", [ZMTP_1, ZMTP_2, HTTP, b"\0" * 100], ids=lambda g: repr(g[:9]))
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_peers_of_older_protocols_and_of_none_are_refused_beside_a_doorkeeper(
    guarded: Guarded, scheme: str, greeting: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What they would send could not be traced to its connection, and so could not be dropped."""
    with connected(guarded.ipc if scheme == "ipc" else guarded.tcp) as raw:
        raw.settimeout(WAIT_S)
        raw.sendall(greeting)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):  # the server's own greeting, and then the end
                pass
        eventually(lambda: guarded.refused == 1)
        eventually(lambda: "not of ZMTP 3" in caplog.text)
    assert guarded.service.server.counters.messages == 0
    assert serves(guarded.ipc)


def test_a_peer_that_leaves_in_its_handshake_is_counted_once(guarded: Guarded) -> None:
    for address in (guarded.ipc, guarded.tcp):
        with connected(address) as raw:
            raw.sendall(NULL_3[:20])
            assert raw.recv(10)
    eventually(lambda: guarded.refused == 2)
    assert serves(guarded.ipc)
    assert serves(guarded.tcp, guarded.key())
    assert guarded.refused == 2


def test_a_peer_that_never_finishes_its_handshake_is_dropped(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.handshakes.HANDSHAKE_S", 0.05)
    with guarded_service(address) as guarded, connected(guarded.tcp) as raw:
        raw.settimeout(WAIT_S)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):
                pass
        eventually(lambda: guarded.refused == 1)


def test_a_peer_at_the_door_does_not_hide_among_those_who_stay(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has just been made could still be shaking hands: until it is too old."""
    monkeypatch.setattr("bus.handshakes.HANDSHAKE_S", 0.2)
    with guarded_service(address) as guarded, Client(guarded.ipc) as staying:
        with connected(guarded.ipc) as raw:
            raw.sendall(HTTP)
            eventually(lambda: guarded.refused == 1)
        assert staying.call(Echo("a")) == Text("a")
        assert guarded.refused == 1


def test_a_question_that_is_none_is_refused_and_the_next_is_answered(guarded: Guarded) -> None:
    context = guarded.service.server._context
    public = zmq.curve_keypair()[0]
    key, curve = z85.decode(public), b"curve"
    guarded.allowed.add(public)
    malformed = [
        [b""],
        [b"1.0"],
        [b"2.0", b"7", curve, b"127.0.0.1", b"", b"CURVE", key],
        [b"1.0", b"7", b"open", b"127.0.0.1", b"", b"CURVE", key],
        [b"1.0", b"7", curve, b"127.0.0.1", b"", b"NULL"],
        [b"1.0", b"7", curve, b"127.0.0.1", b"", b"PLAIN", b"me", b"word"],
        [b"1.0", b"7", curve, b"127.0.0.1", b"", b"CURVE", key[:31]],
        [b"1.0", b"7", curve, b"127.0.0.1", b"", b"CURVE"],
        [b"1.0", b"7", b"\xff\xfe", b"\xff", b"\xff", b"\xff"],
        [b"x"] * 1000,
    ]
    with contextlib.closing(context.socket(zmq.REQ)) as asking:
        asking.connect(ZAP_ADDRESS)
        for question in malformed:
            asking.send_multipart(question)
            assert asking.poll(int(WAIT_S * 1000)), question
            assert asking.recv_multipart()[1:3] == [b"".join(question[1:2]), b"400"], question
        asking.send_multipart([b"1.0", b"7", curve, b"127.0.0.1", b"", b"CURVE", key])
        assert asking.recv_multipart() == [b"1.0", b"7", b"200", b"", b"", b""]
    assert serves(guarded.tcp, guarded.key())


def test_a_server_that_is_closed_without_having_run_leaves_no_doorkeeper() -> None:
    server = Server([Echo], epoch=1)
    secret = zmq.curve_keypair()[1]
    server.bind("tcp://127.0.0.1:0", curve=ServerCurve(secret, lambda key: True))
    assert has_doorkeeper()
    server.close()
    assert not has_doorkeeper()


def test_a_server_without_keys_has_no_doorkeeper(address: str) -> None:
    service = Service(address)
    with running(service.server):
        assert serves(address)
        assert not has_doorkeeper()


def test_hundreds_of_refusals_are_all_counted_and_a_few_logged(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stranger = guarded.key(allowed=False)
    with Client(guarded.ipc) as inside:
        for number in range(200):
            with pytest.raises(Unavailable):
                Client(guarded.tcp, curve=stranger if number % 2 else None)
        assert inside.call(Echo("a")) == Text("a")
    eventually(lambda: guarded.refused == 200)
    assert 2 <= len(caplog.records) <= 30


def test_events_that_nobody_looks_at_do_not_stop_libzmq(address: str) -> None:
    """The loop may be busy: libzmq's thread must not wait for it to take a monitor's event."""
    service = Service(address)
    for _ in range(1000):  # three events each, more than a queue of libzmq holds by default
        with connected(address) as raw:
            assert raw.recv(10)
    with Client(address):  # whose handshake is libzmq's alone
        pass
    service.server.close()


def test_connections_over_tcp_are_kept_alive(guarded: Guarded) -> None:
    """A host that vanishes says no goodbye."""
    port = f"{int(guarded.tcp.rpartition(':')[2]):04X}"

    def timers() -> list[str]:
        with open("/proc/net/tcp") as table:
            lines = [line.split() for line in table][1:]
        ends = [f for f in lines if f[3] == "01" and port in (f[1][9:], f[2][9:])]
        return [fields[5].partition(":")[0] for fields in ends]

    with Client(guarded.tcp, curve=guarded.key()):
        eventually(lambda: timers() == ["02", "02"])  # both ends wait for the next keepalive
