"""A real server that speaks the tests' vocabulary, run in a thread or (as a module) a process."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import override

from bus import DEFERRED, Call, Done, Server, StaleEpoch
from tests.bus import vocabulary
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

EPOCH = 77
WAIT_S = 10.0


class Speechless(Exception):
    """An exception whose own sentence cannot be had."""

    @override
    def __str__(self) -> str:
        raise RuntimeError("no sentence")


FAULTS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("of the handler"),
    "KeyError": lambda: KeyError("missing"),
    "RecursionError": lambda: RecursionError("deep"),
    "OSError on a path that is not utf-8": lambda: FileNotFoundError(2, "gone", "/a/\udcff"),
    "an exception without a sentence": lambda: Speechless(),
    "Refused": lambda: Refused("refused 3 of 5", refused=3, share=0.6, who="me"),
    "StaleEpoch": lambda: StaleEpoch("an old one", epoch=1, expected=2),
    "Refused with a number too large for the wire": lambda: Refused("much", number=1 << 70),
}


class Service:
    """The handlers, and what they have seen. `address` is where it listens."""

    def __init__(self, address: str, **options: Any) -> None:
        self.kept: list[tuple[Call, Keep]] = []
        self.told: list[str] = []
        self.undelivered: list[int] = []
        self.stalled = threading.Event()
        self.gate = threading.Event()
        self.server = Server(
            vocabulary.ALL, epoch=EPOCH, on_undeliverable=self._on_undeliverable, **options
        )
        self.server.on(Echo, self.echo)
        self.server.on(Raise, self.fail)
        self.server.on(Inflate, self.inflate)
        self.server.on(Keep, self.keep)
        self.server.on(AnswerKept, self.answer_kept)
        self.server.on(Stall, self.stall)
        self.server.on_notice(Tell, self.tell)
        self.address = self.server.bind(address)

    def echo(self, call: Call, message: Echo) -> Text:
        return Text(message.text)

    def fail(self, call: Call, message: Raise) -> Text:
        raise FAULTS[message.fault]()

    def inflate(self, call: Call, message: Inflate) -> bytes:
        return bytes(message.answer_bytes)

    def keep(self, call: Call, message: Keep) -> Text:
        self.kept.append((call, message))
        deferred: Text = DEFERRED
        return deferred

    def answer_kept(self, call: Call, message: AnswerKept) -> Done:
        for position in message.positions:
            kept, keep = self.kept[position]
            if keep.text == "refuse":
                kept.fail(Refused("refused after a while", position=position))
            else:
                kept.answer(Text(keep.text))
        self.kept.clear()
        return Done()

    def stall(self, call: Call, message: Stall) -> Done:
        self.stalled.set()
        assert self.gate.wait(WAIT_S)
        return Done()

    def tell(self, call: Call, message: Tell) -> None:
        self.told.append(message.text)
        if message.text == "raise":
            raise ValueError("of the notice's handler")
        if message.text == "refuse":
            raise Refused("refused a notice")

    def _on_undeliverable(self, call: Call) -> None:
        self.undelivered.append(call.call_id)


@contextlib.contextmanager
def running(server: Server) -> Iterator[None]:
    """The server's loop in a thread; on leaving it must still have been alive, and end."""
    thread = threading.Thread(target=server.run, name="bus-server")
    thread.start()
    try:
        yield
        assert thread.is_alive(), "the server's loop ended by itself"
    finally:
        server.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        server.close()


@contextlib.contextmanager
def serving(address: str, **options: Any) -> Iterator[Service]:
    """A service at `address`, run in a thread."""
    service = Service(address, **options)
    with running(service.server):
        try:
            yield service
        finally:
            service.gate.set()


if __name__ == "__main__":
    alone = Service(sys.argv[1])
    print("ready", flush=True)
    alone.server.run()
