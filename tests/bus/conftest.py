"""A service per test, at a path short enough for a Unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from tests.bus.service import Service, serving


@pytest.fixture(autouse=True)
def _servers_stop_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.server.TICK_S", 0.01)


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        yield f"ipc://{directory}/bus.sock"


@pytest.fixture
def service(address: str) -> Iterator[Service]:
    with serving(address) as running_service:
        yield running_service
