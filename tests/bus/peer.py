"""A peer that says whatever a test wants: frames, not messages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from bus import Message, wire
from tests.bus.service import WAIT_S


def request(call_id: int, message: Message, epoch: int = wire.NO_EPOCH) -> bytes:
    """The frame of a request."""
    return wire.frame(wire.REQUEST, call_id, epoch, message)


def with_body(call_id: int, body: bytes, *, version: int = wire.PROTOCOL_VERSION) -> bytes:
    """The frame of a request with any body."""
    return wire.HEADER.pack(wire.MAGIC, version, wire.REQUEST, 0, call_id, wire.NO_EPOCH) + body


@dataclass(frozen=True, slots=True)
class Answer:
    """A frame that came back."""

    kind: int
    call_id: int
    data: bytes

    def error_code(self) -> str:
        assert self.kind == wire.ERROR
        return wire.decode_error(self.data).code


class Peer:
    """A raw DEALER socket and its monitor; `with Peer(address) as peer` closes both."""

    def __init__(self, address: str, *, receive_hwm: int = 1000) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.setsockopt(zmq.SNDHWM, 100_000)
        self.socket.setsockopt(zmq.RCVHWM, receive_hwm)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(address)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """One message of so many frames."""
        self.socket.send_multipart(frames)

    def receive(self) -> Answer:
        """The next answer; there must be one."""
        assert self.socket.poll(int(WAIT_S * 1000)), "no answer came"
        return self._take()

    def answers_until_dropped(self) -> list[Answer]:
        """What arrives before the server ends the connection, which it must."""
        assert self.monitor.poll(int(WAIT_S * 1000)), "the connection was not dropped"
        return self._waiting()

    def answers_until(self, call_id: int) -> list[Answer]:
        """What arrives before the answer to `call_id`, which must come, or the connection ends."""
        answers: list[Answer] = []
        while (answer := self.receive()).call_id != call_id:
            answers.append(answer)
        return answers + self._waiting()

    def dropped_or_answered(self, frames: Sequence[bytes], marker: bytes) -> list[Answer] | None:
        """Send `frames` and then `marker`: the answers to both, or None if dropped for it."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        marker_id = wire.parse(marker)[2]
        self.send(*frames)
        with contextlib.suppress(zmq.Again):  # dropped already
            self.socket.send(marker, zmq.DONTWAIT)
        answers: list[Answer] = []
        while not any(answer.call_id == marker_id for answer in answers):
            ready = dict(poller.poll(int(WAIT_S * 1000)))
            assert ready, "neither answered nor dropped"
            answers += self._waiting()
            if self.monitor in ready:
                assert not answers, f"dropped, but answered before: {answers}"
                return None
        return answers

    def _waiting(self) -> list[Answer]:
        answers = []
        while self.socket.poll(0):
            answers.append(self._take())
        return answers

    def _take(self) -> Answer:
        data = self.socket.recv()
        assert not self.socket.getsockopt(zmq.RCVMORE), "an answer is one frame"
        _, kind, call_id, _ = wire.parse(data)
        return Answer(kind, call_id, data)


def eventually(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds, which it must within `WAIT_S`."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"did not happen within {WAIT_S:g} s"
        time.sleep(0.005)
