"""Who may attach an adapter: a process of this host, by the socket in the run directory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import bus
from lmcache_mp.errors import NotAllowed
from lmcache_mp.tiering.messages import L2Attach
from tests.world import EngineProcess


def test_a_peer_that_comes_by_tcp_attaches_nothing(
    start_engine: Callable[..., EngineProcess],
) -> None:
    engine = start_engine(bus=("tcp://127.0.0.1:0",), bus_insecure_loopback=True)
    address = engine.status().bus.addresses[1]
    with bus.Client(address) as peer, pytest.raises(NotAllowed, match=r"other hosts \(127"):
        peer.call(L2Attach(spec='{"type": "memory"}'))
    assert engine.status().l2 == []
