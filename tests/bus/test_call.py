"""Exactly one answer, also by handlers that give several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bus import DEFERRED, Call, CallError, Done, Server, wire
from tests.bus.peer import Peer, request
from tests.bus.service import EPOCH, running
from tests.bus.vocabulary import AnswerKept, Echo, Keep, Refused, Tell, Text

MARKER = 99


class Careless:
    """Answers a call in ways that the test chooses."""

    def __init__(self, address: str) -> None:
        self.act: Callable[[Call], Text] = lambda call: Text("")
        self.kept: list[Call] = []
        self.server = Server([Echo, Keep, Tell, AnswerKept], epoch=EPOCH)
        self.server.on(Echo, self.echo)
        self.server.on(Keep, self.keep)
        self.server.on(AnswerKept, self.answer_kept)
        self.server.on_notice(Tell, self.tell)
        self.address = self.server.bind(address)

    def echo(self, call: Call, message: Echo) -> Text:
        return Text(message.text)

    def keep(self, call: Call, message: Keep) -> Text:
        return self.act(call)

    def answer_kept(self, call: Call, message: AnswerKept) -> Done:
        for kept in self.kept:
            kept.answer(Text("first"))
            kept.fail(Refused("second"))
            kept.answer(Text("third"))
        return Done()

    def tell(self, call: Call, message: Tell) -> None:
        call.answer(Text("a notice is not answered"))


@pytest.fixture
def careless(address: str) -> Iterator[Careless]:
    careless = Careless(address)
    with running(careless.server):
        yield careless


def answers_to(careless: Careless, act: Callable[[Call], Text]) -> list[tuple[int, bytes]]:
    careless.act = act
    with Peer(careless.address) as peer:
        peer.send(request(1, Keep("")))
        peer.send(request(2, AnswerKept(())))
        peer.send(request(MARKER, Echo("")))
        return [(a.call_id, a.data) for a in peer.answers_until(MARKER) if a.call_id == 1]


def told_as_a_bug(caplog: pytest.LogCaptureFixture) -> int:
    lines = [record for record in caplog.records if "is owed no answer" in record.message]
    assert all(record.levelname == "ERROR" and record.stack_info for record in lines)
    return len(lines)


REPLY = (1, wire.frame(wire.REPLY, 1, EPOCH, Text("first")))


def test_a_kept_call_that_is_answered_again_has_one_answer(
    careless: Careless, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(call: Call) -> Text:
        careless.kept.append(call)
        deferred: Text = DEFERRED
        return deferred

    assert answers_to(careless, keep) == [REPLY]
    assert told_as_a_bug(caplog) == 2
    assert careless.server.counters.errors == 0


def test_a_handler_that_answers_and_returns_gives_one_answer(
    careless: Careless, caplog: pytest.LogCaptureFixture
) -> None:
    def both(call: Call) -> Text:
        call.answer(Text("first"))
        return Text("second")

    assert answers_to(careless, both) == [REPLY]
    assert told_as_a_bug(caplog) == 1


@pytest.mark.parametrize("fault", [CallError("late"), ValueError("late")], ids=repr)
def test_a_handler_that_answers_and_raises_gives_one_answer(
    careless: Careless, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def both(call: Call) -> Text:
        call.answer(Text("first"))
        raise fault

    assert answers_to(careless, both) == [REPLY]
    assert told_as_a_bug(caplog) == 1


def test_an_answer_that_cannot_be_encoded_is_one_error(
    careless: Careless, caplog: pytest.LogCaptureFixture
) -> None:
    ((_, data),) = answers_to(careless, lambda call: Text("a lone surrogate: \ud800"))
    assert wire.decode_error(data).code == "handler_failed"
    assert told_as_a_bug(caplog) == 0


def test_a_notice_is_never_answered(careless: Careless, caplog: pytest.LogCaptureFixture) -> None:
    with Peer(careless.address) as peer:
        peer.send(wire.frame(wire.NOTICE, 1, wire.NO_EPOCH, Tell("")))
        peer.send(request(MARKER, Echo("")))
        assert peer.answers_until(MARKER) == []
    assert told_as_a_bug(caplog) == 1
