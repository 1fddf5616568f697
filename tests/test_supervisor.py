"""The supervisor with small real processes in the places of engine and http.

The real ones are in tests/test_cli.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_mp import process
from lmcache_mp.supervisor.restart import LONGEST_DELAY_S, WELL_AFTER_S, RestartPolicy

ENGINE = '''
"""Answers heartbeats, and writes each into a file. argv: bus address, file, how it behaves."""
import json, os, signal, sys, time
import msgspec
from bus import Call, Server
from lmcache_mp.messages import Beat, Heartbeat
from lmcache_mp.process import die_with_parent

die_with_parent()
address, heard, *behaviour = sys.argv[1:]
if "refuse" in behaviour:
    print("L1 of 9TiB is larger than what is free", file=sys.stderr)
    sys.exit(2)
if "die-unless-cold" in behaviour and "--cold" not in behaviour:
    sys.exit(1)
if "deaf-to-sigterm" in behaviour:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: server.stop())

def heartbeat(call: Call, message: Heartbeat) -> Beat:
    with open(heard, "a") as file:
        file.write(msgspec.json.encode(message.processes).decode() + "\\n")
    return Beat(l2=[])

server = Server([Heartbeat], epoch=1)
server.on(Heartbeat, heartbeat)
server.bind(address)
server.run()
server.close()
'''

HTTP = '''
"""Lives until told to end. argv: how it behaves."""
import os, signal, sys
from lmcache_mp.process import die_with_parent

die_with_parent()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if "leave-orphans" in sys.argv:
    for _ in range(3):
        if os.fork() == 0:
            if (orphan := os.fork()) == 0:
                os.execvp("sleep", ["sleep", "0.2"])
            with open("orphans", "a") as file:
                print(orphan, file=file)
            os._exit(0)
        os.wait()
while "die" not in sys.argv:
    signal.pause()
'''

SUPERVISOR = '''
"""Runs engine and http as told by a JSON object in argv[1]."""
import ctypes, json, sys
from lmcache_mp.logging import configure
from lmcache_mp.supervisor.child import Child
from lmcache_mp.supervisor.supervisor import Patience, Supervisor

told = json.loads(sys.argv[1])
if told["subreaper"]:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us
configure("info", "text", "supervisor")
engine = Child("engine", told["engine"], cold_command=[*told["engine"], "--cold"], probed=True)
http = Child("http", told["http"], address="http://127.0.0.1:1")
no_worker = lambda name: Child(name, ["false"])
patience = Patience(**told["patience"])
sys.exit(Supervisor(engine, http, no_worker, told["address"], patience).run())
'''

PATIENCE = {"answer_s": 1.0, "abort_s": 0.3, "drain_s": 1.0, "stop_s": 1.0, "hastened_s": 0.2}


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """The first true value of `condition`; fails the test after ten seconds without one."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether there is such a process; one that nobody has reaped counts."""
    return Path(f"/proc/{pid}").exists()


@dataclass
class Supervised:
    """A supervisor with an engine and an http process of ours."""

    directory: Path
    engine: list[str] = field(default_factory=list)
    http: list[str] = field(default_factory=list)
    patience: dict[str, float] = field(default_factory=dict)
    subreaper: bool = False

    def start(self) -> Supervised:
        self.log = self.directory / "log"
        self.heard = self.directory / "heard"
        scripts = {"engine.py": ENGINE, "http.py": HTTP, "supervisor.py": SUPERVISOR}
        for name, script in scripts.items():
            (self.directory / name).write_text(script)
        address = f"ipc://{self.directory}/bus.sock"
        engine = [sys.executable, "engine.py", address, str(self.heard), *self.engine]
        told = {
            "engine": engine,
            "http": [sys.executable, "http.py", *self.http],
            "address": address,
            "patience": PATIENCE | self.patience,
            "subreaper": self.subreaper,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "supervisor.py", json.dumps(told)],
                cwd=self.directory,
                stderr=log,
            )
        return self

    def table(self) -> dict[str, Any]:
        """The processes, as the engine was told last."""
        lines = self.heard.read_text().splitlines() if self.heard.exists() else []
        return json.loads(lines[-1]) if lines else {}

    def pid_of(self, name: str, *, other_than: int = 0) -> int:
        """Once it runs, as the engine knows."""

        def running() -> int:
            row = self.table().get(name, {})
            pid = row.get("pid", 0) if row.get("state") == "running" else 0
            return 0 if pid == other_than else pid

        return int(eventually(running, f"{name} runs; log:\n{self.log.read_text()}"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return int(self.process.wait(timeout=10))

    def end(self) -> None:
        """Whatever the test did: nothing of it survives."""
        if self.process.poll() is None:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            for pid in (*map(int, children.read_text().split()), self.process.pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def supervised() -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(**kwargs: Any) -> Supervised:
        directory = Path("/tmp") / f"lmcache-mp-{uuid.uuid4().hex[:12]}"
        directory.mkdir(mode=0o700)
        started.append(Supervised(directory, **kwargs).start())
        return started[-1]

    yield start
    for each in started:
        each.end()
        for path in each.directory.iterdir():
            path.unlink()
        each.directory.rmdir()


Start = Callable[..., Supervised]


def test_the_engine_is_told_who_runs_and_sigterm_ends_all(supervised: Start) -> None:
    server = supervised()
    pids = [server.pid_of(name) for name in ("supervisor", "engine", "http")]
    table = server.table()
    assert pids[0] == server.process.pid
    assert table["http"]["address"] == "http://127.0.0.1:1"
    assert [table[name]["restarts"] for name in ("engine", "http")] == [0, 0]
    assert server.stop() == 0
    assert server.table()["engine"]["state"] == "stopping"
    assert not any(exists(pid) for pid in pids[1:])


def test_sigint_ends_all_too(supervised: Start) -> None:
    server = supervised()
    server.pid_of("engine")
    assert server.stop(signal.SIGINT) == 0


def test_the_uptime_grows_with_every_beat(supervised: Start) -> None:
    server = supervised()
    pid = server.pid_of("engine")
    eventually(lambda: server.table()["engine"]["uptime_s"] > 1, "a later beat")
    assert server.table()["engine"]["pid"] == pid


@pytest.mark.parametrize("name", ["engine", "http"])
def test_what_is_killed_is_started_again_and_the_table_says_why(
    name: str, supervised: Start
) -> None:
    server = supervised()
    pid = server.pid_of(name)
    os.kill(pid, signal.SIGKILL)
    server.pid_of(name, other_than=pid)
    row = server.table()[name]
    assert row["restarts"] == 1
    assert row["note"] == "was killed by SIGKILL"
    assert server.stop() == 0


def test_an_engine_that_hangs_is_aborted_then_killed_and_started_again(supervised: Start) -> None:
    server = supervised()
    pid = server.pid_of("engine")
    os.kill(pid, signal.SIGSTOP)
    server.pid_of("engine", other_than=pid)
    assert server.table()["engine"]["note"] == "did not answer and was killed by SIGKILL"
    assert "engine has not answered for" in server.log.read_text()


def test_a_supervisor_that_stood_still_does_not_blame_the_engine(supervised: Start) -> None:
    server = supervised(patience={"answer_s": 3.0})
    pid = server.pid_of("engine")
    for each in (server.process.pid, pid):
        os.kill(each, signal.SIGSTOP)
    beats = len(server.heard.read_text().splitlines())
    paused_since_s = time.monotonic()
    eventually(lambda: time.monotonic() - paused_since_s > 3.5, "a pause longer than its patience")
    for each in (server.process.pid, pid):
        os.kill(each, signal.SIGCONT)
    eventually(lambda: len(server.heard.read_text().splitlines()) > beats + 1, "further beats")
    assert server.pid_of("engine") == pid
    assert "aborting" not in server.log.read_text()


def test_an_engine_that_refuses_its_settings_ends_the_server_with_its_sentence(
    supervised: Start,
) -> None:
    server = supervised(engine=["refuse"])
    assert server.process.wait(timeout=10) == 2
    log = server.log.read_text()
    assert "L1 of 9TiB is larger than what is free" in log
    assert "engine cannot run with these settings" in log
    assert "starting it again" not in log


def test_an_engine_that_dies_three_times_before_it_is_ready_is_started_cold(
    supervised: Start,
) -> None:
    server = supervised(engine=["die-unless-cold"])
    server.pid_of("engine")
    assert server.table()["engine"]["restarts"] == 3
    assert "starting it cold" in server.log.read_text()
    assert server.stop() == 0


def test_an_http_process_that_always_dies_is_started_less_and_less_often(
    supervised: Start,
) -> None:
    server = supervised(http=["die"])
    server.pid_of("engine")
    eventually(lambda: server.table()["http"]["restarts"] >= 3, "some restarts")
    assert "in 0.4 s" in server.log.read_text()
    assert server.table()["engine"]["restarts"] == 0
    assert server.stop() == 0


def test_an_engine_that_does_not_stop_is_killed_when_its_time_is_up(supervised: Start) -> None:
    server = supervised(engine=["deaf-to-sigterm"])
    pid = server.pid_of("engine")
    assert server.stop() == 0
    assert not exists(pid)
    assert f"engine pid={pid} does not stop: killing it" in server.log.read_text()


def test_a_second_sigterm_does_not_wait_for_the_drain(supervised: Start) -> None:
    server = supervised(engine=["deaf-to-sigterm"], patience={"drain_s": 600.0})
    server.pid_of("engine")
    server.process.terminate()
    eventually(lambda: "told to stop" in server.log.read_text(), "the first is taken")
    assert server.stop() == 0


def test_no_child_outlives_a_killed_supervisor(supervised: Start) -> None:
    server = supervised()
    pids = [server.pid_of(name) for name in ("engine", "http")]
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(map(exists, pids)), "the children are gone")


def test_orphans_that_come_to_it_as_to_init_are_reaped(supervised: Start) -> None:
    server = supervised(http=["leave-orphans"], subreaper=True)
    server.pid_of("http")
    orphans = server.directory / "orphans"
    eventually(lambda: orphans.exists() and len(orphans.read_text().split()) == 3, "orphans")
    pids = [int(pid) for pid in orphans.read_text().split()]
    eventually(lambda: not any(map(exists, pids)), "orphans are reaped")
    assert server.stop() == 0


class TestRestartPolicy:
    def test_the_first_death_of_what_was_ready_costs_no_delay(self) -> None:
        policy = RestartPolicy()
        policy.ready(now_s=1.0)
        assert policy.died(now_s=2.0) == 0.0

    def test_each_further_death_doubles_the_delay(self) -> None:
        policy = RestartPolicy()
        assert [policy.died(now_s=0.0) for _ in range(4)] == [0.1, 0.2, 0.4, 0.8]

    def test_after_good_health_a_death_is_the_first_again(self) -> None:
        policy = RestartPolicy()
        for _ in range(5):
            policy.died(now_s=0.0)
        policy.ready(now_s=10.0)
        assert policy.died(now_s=10.0 + WELL_AFTER_S) == 0.0

    def test_a_short_life_is_no_good_health(self) -> None:
        policy = RestartPolicy()
        delays = []
        for _ in range(3):
            policy.ready(now_s=0.0)
            delays.append(policy.died(now_s=WELL_AFTER_S / 2))
        assert delays == [0.0, 0.2, 0.4]

    def test_three_deaths_before_it_is_ready_ask_for_a_cold_start_until_it_is(self) -> None:
        policy = RestartPolicy()
        cold = []
        for _ in range(4):
            policy.died(now_s=0.0)
            cold.append(policy.start_cold)
        assert cold == [False, False, True, True]
        policy.ready(now_s=1.0)
        assert not policy.start_cold

    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 100))))
    def test_whatever_happens_the_delay_is_bounded(self, lives: list[tuple[bool, float]]) -> None:
        policy, now_s = RestartPolicy(), 0.0
        for is_ready, length_s in lives:
            if is_ready:
                policy.ready(now_s)
            now_s += length_s
            delay_s = policy.died(now_s)
            assert 0.0 <= delay_s <= LONGEST_DELAY_S
            assert delay_s > 0.0 or is_ready


def test_a_process_that_nobody_supervises_does_not_mind_its_parent() -> None:
    process.die_with_parent()
    assert not process.parent_is_gone()


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    code = "from lmcache_mp.process import die_with_parent; die_with_parent(); print('lives on')"
    environment = os.environ | {"LMCACHE_MP_PARENT_PID": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
