"""A whole server with adapters: who starts their workers, and what operators say to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmcache_mp.client import CacheClient
from tests.l2.world import CHUNKS, prompt, retrieve, store
from tests.serving import Serving, serving
from tests.waiting import wait_until
from tests.world import NAMESPACE


@pytest.fixture
def server(run_directory: Path) -> Iterator[Serving]:
    with serving(run_directory / "r", "--l2", '{"type": "memory"}') as running:
        wait_until(lambda: states(running) == {"memory": "open"})
        yield running
        assert running.check() == []
        assert running.stop() == 0


def states(server: Serving) -> dict[str, str]:
    return {adapter.name: adapter.state for adapter in server.status().l2}


def l2(server: Serving, *words: str) -> subprocess.CompletedProcess[str]:
    """`lmcache-mp l2 ...`"""
    which = ["--name", server.name, "--run-dir", str(server.run_dir.path)]
    command = [sys.executable, "-m", "lmcache_mp", "l2", *words, *which]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_workers_are_started_again_and_give_way_to_the_engine(server: Serving) -> None:
    processes = server.status().processes
    priority = {
        name: os.getpriority(os.PRIO_PROCESS, process.pid) for name, process in processes.items()
    }
    assert priority["engine"] < priority["l2.memory"]
    assert priority["engine"] < priority["http"]
    os.kill(processes["l2.memory"].pid, signal.SIGKILL)
    wait_until(lambda: server.status().processes["l2.memory"].restarts == 1)
    wait_until(lambda: states(server) == {"memory": "open"})
    assert server.status().processes["l2.memory"].pid != processes["l2.memory"].pid


def test_adapters_come_and_go_while_the_server_runs(server: Serving, run_directory: Path) -> None:
    (run_directory / "kv").mkdir()
    spec = json.dumps({"type": "fs", "path": str(run_directory / "kv")})
    assert l2(server, "attach", spec).stdout == f"attached fs to server '{server.name}'\n"
    assert states(server) == {"memory": "open", "fs": "open"}
    with CacheClient.connect(server.run_dir.bus_address, NAMESPACE, timeout_s=10) as client:
        keys = prompt(client, 1)
        assert store(client, keys) == CHUNKS
        assert l2(server, "detach", "memory").returncode == 0
        assert states(server) == {"fs": "open"}
        wait_until(lambda: server.status().l2[0].counters.cascaded_chunks >= CHUNKS)
        client.clear()
        assert retrieve(client, keys) == CHUNKS
        wait_until(lambda: "l2.memory" not in server.status().processes)
        assert l2(server, "clear", "fs").returncode == 0
        client.clear()
        assert retrieve(client, keys) == 0
    shown = json.loads(l2(server, "list", "--json").stdout)
    assert [adapter["name"] for adapter in shown] == ["fs"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["attach", '{"type": "nothing"}'], "unknown type 'nothing': known are fault, fs, memory"),
        (["attach", '{"type": "memory", "size": 1}'], "size"),
        (["attach", '{"type": "fs", "path": "/does/not/exist"}'], "/does/not/exist"),
        (["attach"], "needs a mapping"),
        (["detach", "other"], "no adapter 'other': attached are memory"),
    ],
)
def test_what_cannot_be_done_is_said(server: Serving, words: list[str], sentence: str) -> None:
    told = l2(server, *words)
    assert told.returncode == 1
    assert sentence in told.stderr
    assert states(server) == {"memory": "open"}
