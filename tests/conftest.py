"""Fixtures of all tests: real processes to talk to, and a guard that nothing of them is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from tests.waiting import wait_until
from tests.world import EngineProcess, short_directory

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session", autouse=True)
def _zmq_context_is_up() -> None:
    """The context of this process opens descriptors with its first socket, and keeps them."""
    zmq.Context.instance().socket(zmq.DEALER).close(linger=0)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_ends_children() -> None:
    """A shell that starts the tests in the background has them, and all they start, ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = _world()
    yield
    grown: dict[str, set[str]] = {}

    def clean() -> bool:
        after = _world()
        grown.clear()
        grown.update({k: after[k] - before[k] for k in after if after[k] - before[k]})
        return not grown

    try:
        wait_until(clean, timeout_s=10)
    except TimeoutError:
        pytest.fail(f"left behind: {grown}")


def _world() -> dict[str, set[str]]:
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return {
        "threads": {str(thread) for thread in threading.enumerate()},
        "children": {str(child.pid) for child in psutil.Process().children(recursive=True)},
        "shared memory": {p.name for p in SHARED_MEMORY.glob(f"lmcache-mp.t{os.getpid()}.*")},
        "descriptors": descriptors,
    }


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """A fresh directory whose path leaves room for a Unix socket's."""
    with short_directory() as path:
        yield path


@pytest.fixture
def start_engine() -> Iterator[Callable[..., EngineProcess]]:
    """Start engine processes: `start_engine(l1_size="16MiB")`. Each is checked at the end."""
    engines: list[EngineProcess] = []

    def start(**settings: Any) -> EngineProcess:
        engine = EngineProcess(settings)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.finish()


@pytest.fixture
def engine(start_engine: Callable[..., EngineProcess]) -> EngineProcess:
    """A running engine process with a small L1."""
    return start_engine()
