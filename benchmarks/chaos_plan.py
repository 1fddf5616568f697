"""What goes wrong in a chaos run, and when: a pure function of the seed.

Engine deaths have a clock of their own, because the supervisor waits longer and longer for a
process that dies more often than every ten seconds. Everything else is dealt from a shuffled deck,
so that every kind occurs and none in a fixed order.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from itertools import cycle

import msgspec


class Kind(enum.StrEnum):
    """One thing that goes wrong."""

    ENGINE_KILLED = "engine killed"
    ENGINE_STOPPED = "engine stopped"
    HTTP_KILLED = "http killed"
    SUPERVISOR_KILLED = "supervisor killed and started again"
    SERVER_UPGRADED = "server stopped and started again with its L1"
    CLIENT_KILLED = "client killed anywhere"
    CLIENT_DIES_RESERVED = "client killed before commit"
    CLIENT_DIES_COPYING = "client killed half-way through a copy"
    CLIENT_DIES_PINNED = "client killed holding pins and reads"
    CLIENT_DIES_FORKED = "client killed right after fork"
    CLIENT_DIES_WAITING = "client killed while its store waits for memory"
    CLIENT_STOPPED = "client stopped"
    PEER_GARBAGE = "peer sends garbage"
    PEER_MUTE = "peer never reads"
    PEER_VANISHES = "peer connects and vanishes"
    PEER_STALE = "peer floods with stale leases"
    PEER_TCP = "peer on tcp looks up and asks for bytes"
    CLEARED = "caches cleared"


CLIENT_DEATHS = (
    Kind.CLIENT_KILLED,
    Kind.CLIENT_DIES_RESERVED,
    Kind.CLIENT_DIES_COPYING,
    Kind.CLIENT_DIES_PINNED,
    Kind.CLIENT_DIES_FORKED,
)
PEERS = (
    Kind.PEER_GARBAGE,
    Kind.PEER_MUTE,
    Kind.PEER_VANISHES,
    Kind.PEER_STALE,
    Kind.PEER_TCP,
)
_DECK = (
    *(CLIENT_DEATHS * 4),
    *PEERS,
    *(Kind.CLIENT_STOPPED,) * 4,
    Kind.ENGINE_STOPPED,
    Kind.HTTP_KILLED,
    Kind.CLEARED,
)

CALM_S = 1.0
"""At the beginning and at the end nothing goes wrong."""
DEATHS_APART_S = (11.0, 14.0)
"""After ten good seconds a death has no consequences for the next one."""
AGAIN_S = (0.2, 1.2)
"""And now and then it dies once more, while it adopts or just after."""
AGAIN_SHARE = 1 / 2
SERVER_ENDS_S = (5.0, 7.0)
"""After every other engine's death, the whole server ends, one way or the other."""
_SERVER_ENDS = (Kind.SUPERVISOR_KILLED, None, Kind.SERVER_UPGRADED, None)
LONGEST_ENGINE_STOP_S = 2.5
LONGEST_CLIENT_STOP_S = 4.0
"""Longer than the grace that a dead writer's slots have."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing at its time, in seconds since the start."""

    at_s: float
    kind: Kind
    client: int
    """Which one, if it befalls a client."""
    for_s: float
    """How long, for what lasts."""
    seed: int
    """For what is random about it."""


def plan(seed: int, seconds: float, clients: int) -> tuple[Event, ...]:
    """All events of a run of that length, in order."""
    rng = random.Random(seed)
    moments = sorted([*_engine_deaths(rng, seconds - CALM_S), *_others(rng, seconds - CALM_S)])
    return tuple(_event(rng, at_s, kind, clients) for at_s, kind in moments)


def _engine_deaths(rng: random.Random, end_s: float) -> Iterator[tuple[float, Kind]]:
    at_s = CALM_S + rng.uniform(1.0, 3.0)
    ends = cycle(_SERVER_ENDS)
    while at_s < end_s:
        yield at_s, Kind.ENGINE_KILLED
        if rng.random() < AGAIN_SHARE and (again_s := at_s + rng.uniform(*AGAIN_S)) < end_s:
            at_s = again_s
            yield at_s, Kind.ENGINE_KILLED
        ends_s = at_s + rng.uniform(*SERVER_ENDS_S)
        if (how := next(ends)) is not None and ends_s < end_s:
            yield ends_s, how
        at_s += rng.uniform(*DEATHS_APART_S)


def _others(rng: random.Random, end_s: float) -> Iterator[tuple[float, Kind]]:
    at_s = CALM_S
    while True:
        deck = list(_DECK)
        rng.shuffle(deck)
        for kind in deck:
            at_s += rng.expovariate(2.0)
            if at_s >= end_s:
                return
            yield at_s, kind


def _event(rng: random.Random, at_s: float, kind: Kind, clients: int) -> Event:
    longest_s = {
        Kind.ENGINE_STOPPED: LONGEST_ENGINE_STOP_S,
        Kind.CLIENT_STOPPED: LONGEST_CLIENT_STOP_S,
    }.get(kind, 1.0)
    return Event(
        at_s=at_s,
        kind=kind,
        client=rng.randrange(clients),
        for_s=rng.uniform(0.05, 1.0) * longest_s,
        seed=rng.getrandbits(32),
    )
