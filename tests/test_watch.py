"""`lmcache-mp status --watch`: rates, and a server that comes and goes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmcache_mp.cli.rates import Rates
from lmcache_mp.messages import StatusReport
from tests.terminal import terminal
from tests.waiting import wait_until
from tests.world import EngineProcess

EVERY_S = "0.1"
SHOWS_THE_CURSOR = "\x1b[?25h"
PER_SECOND = re.compile(r"per second .*?([\d,]+) of ([\d,]+) chunks hit, (\S+ \S+) stored")


def watching(engine: EngineProcess, every_s: str = EVERY_S) -> list[str]:
    which = ["--run-dir", str(engine.run_dir.path), "--name", engine.config.name]
    return [sys.executable, "-m", "lmcache_mp", "status", *which, "--watch", every_s]


@contextlib.contextmanager
def watched(engine: EngineProcess, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A watch whose pages go to a file."""
    with log.open("wb") as out:
        process = subprocess.Popen(watching(engine), stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_that_goes_away_and_comes_back_is_watched_on(
    engine: EngineProcess, tmp_path: Path
) -> None:
    log = tmp_path / "pages"

    def page_says(text: str) -> None:
        wait_until(lambda: text in log.read_text())

    with watched(engine, log) as process:
        page_says("per second")
        engine.kill()
        page_says(f"no server '{engine.config.name}' runs in {engine.run_dir.path}: start one")
        assert "away for 0 s: " in log.read_text()
        engine.start()
        page_says("back after ")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    assert "Traceback" not in log.read_text()


def test_what_happens_is_shown_per_second(engine: EngineProcess, tmp_path: Path) -> None:
    log = tmp_path / "pages"
    with watched(engine, log), engine.client() as cache:
        wait_until(lambda: "per second" in log.read_text())
        keys = cache.chunk_keys(range(16))
        with cache.store(keys) as batch:
            assert len(list(batch.slots())) == 4
        assert cache.lookup(keys).hit_chunks == 4

        def rates() -> list[tuple[Any, ...]]:
            return PER_SECOND.findall(log.read_text())

        wait_until(lambda: any(hits == asked != "0" for hits, asked, _ in rates()))
        wait_until(lambda: any(stored != "0 B" for _, _, stored in rates()))


def test_a_terminal_shows_one_page_and_gets_its_cursor_back(engine: EngineProcess) -> None:
    colours = {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
    with terminal(watching(engine), **colours) as shown:
        shown.shows("per second")
        assert SHOWS_THE_CURSOR not in shown.text
        assert shown.interrupt() == 0
        shown.shows(SHOWS_THE_CURSOR)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--watch", "often"), "--watch 'often': expected a number of seconds from 0.1 to 3600"),
        (("--watch", "0"), "--watch '0': expected a number of seconds from 0.1 to 3600"),
        (("--watch", "nan"), "--watch 'nan': expected a number of seconds from 0.1 to 3600"),
        (("--watch", "--json"), "--watch is for people: call `status --json` as often as you like"),
    ],
)
def test_what_cannot_be_watched_is_refused(flags: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_mp", "status", *flags],
        env={**os.environ, "XDG_RUNTIME_DIR": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (2, f"lmcache-mp: {sentence}\n")


def test_rates_are_per_second_of_the_engine_that_counted(engine: EngineProcess) -> None:
    before = engine.status()
    counters = msgspec.structs.replace(
        before.counters, hit_chunks=3, lookup_chunks=4, stored_bytes=10, retrieved_bytes=20
    )
    after = msgspec.structs.replace(before, uptime_s=before.uptime_s + 2, counters=counters)
    rates = Rates.between(before, after)
    assert rates is not None
    assert (rates.hit_chunks, rates.lookup_chunks) == (1.5, 2)
    assert (rates.stored_bytes, rates.retrieved_bytes, rates.messages) == (5, 10, 0)
    assert Rates.between(after, before) is None
    successor: StatusReport = msgspec.structs.replace(after, epoch=before.epoch + 1)
    assert Rates.between(before, successor) is None


def test_what_takes_long_says_so_on_a_terminal_and_nowhere_else(engine: EngineProcess) -> None:
    which = ["--run-dir", str(engine.run_dir.path), "--name", engine.config.name]
    command = [sys.executable, "-m", "lmcache_mp", "check", *which]
    with terminal(command, TERM="xterm") as shown:
        shown.shows("no fault")
        assert "comparing every slot" in shown.text
    piped = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (piped.stdout, piped.stderr) == ("checked 0 slots: no fault\n", "")
