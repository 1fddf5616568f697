from __future__ import annotations

import logging

import pytest

from bus import Client
from bus.limited_log import LINES, PERIOD_S, LimitedLog
from tests.bus.peer import Peer, eventually
from tests.bus.service import Service
from tests.bus.vocabulary import Echo, Text


@pytest.fixture
def log() -> LimitedLog:
    return LimitedLog(logging.getLogger("tests.limited"))


def test_a_flood_is_a_few_lines_and_one_that_says_how_many_more(
    log: LimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        log.say(number / 1000, logging.WARNING, "refused %d", number)
    log.look(PERIOD_S - 0.1)
    assert caplog.messages == [f"refused {number}" for number in range(LINES)]
    log.look(PERIOD_S)
    assert caplog.messages[LINES:] == ["990 more in 10 s: refused %d"]


def test_after_the_period_there_are_lines_again(
    log: LimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(LINES):
        log.say(0, logging.WARNING, "refused %d", number)
    log.look(PERIOD_S)
    log.say(PERIOD_S, logging.WARNING, "refused %d", 99)
    assert caplog.messages[-2:] == [f"refused {LINES - 1}", "refused 99"]


def test_one_flood_does_not_hide_another_sentence(
    log: LimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        log.say(0, logging.WARNING, "dropped %d", number)
    log.say(0, logging.WARNING, "refused %s", "a key")
    assert caplog.messages[-1] == "refused a key"


def test_peers_that_are_not_well_framed_are_all_counted_and_a_few_logged(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(service.address) as client:
        for number in range(50):
            with Peer(service.address) as peer:
                peer.send(b"garbage %d" % number)
                peer.answers_until_dropped()
        assert client.call(Echo("a")) == Text("a")
    eventually(lambda: service.server.counters.not_well_framed == 50)
    dropped = [text for text in caplog.messages if text.startswith("dropped a connection of")]
    assert len(dropped) == LINES
    assert "not well framed: 9 bytes are fewer than a header's 24" in dropped[0]
