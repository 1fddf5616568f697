"""The adapter of docs/extending.md is one, exactly as it stands there; so are the drills."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import bus
from lmcache_mp.client import CacheClient
from lmcache_mp.messages import Status
from lmcache_mp.tiering.spec import AdapterSpec
from tests.l2.world import CHUNKS, prompt, retrieve, store
from tests.waiting import wait_until
from tests.world import NAMESPACE, short_directory, unique_name

ROOT = Path(__file__).parents[2]
SECTION = (
    (ROOT / "docs" / "extending.md")
    .read_text()
    .partition("\n## An L2 adapter: one module\n")[2]
    .partition("\n## ")[0]
)
ADAPTER, TEST = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
ADAPTERS: list[dict[str, Any]] = [
    msgspec.json.decode(words[words.index("--l2") + 1])
    for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    for words in map(shlex.split, block.splitlines())
]


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Where `kv_plugins` is found."""
    (tmp_path / "kv_plugins").mkdir()
    (tmp_path / "kv_plugins" / "sqlite.py").write_text(ADAPTER)
    (tmp_path / "test_sqlite.py").write_text(TEST)
    return tmp_path


def environment(plugins: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{plugins}{os.pathsep}{ROOT}"}


@contextmanager
def serving(plugins: Path, adapter: dict[str, Any]) -> Generator[str]:
    """A server with this adapter alone, once it is open; its address."""
    with short_directory() as run_dir:
        address = f"ipc://{run_dir}/bus.sock"
        command = [sys.executable, "-P", "-m", "lmcache_mp", "serve", "--run-dir", str(run_dir)]
        command += ["--name", unique_name(), "--l1-size", "1MiB", "--http-port", "0"]
        command += ["--l2", msgspec.json.encode(adapter).decode()]
        server = subprocess.Popen(command, env=environment(plugins))

        def is_open() -> bool:
            assert server.poll() is None, f"the server ended with {server.returncode}"
            try:
                with bus.Client(address) as client:
                    return [l2.state for l2 in client.call(Status()).l2] == ["open"]
            except bus.Unavailable:
                return False

        try:
            wait_until(is_open)
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=20) == 0


def connect(address: str) -> CacheClient:
    return CacheClient.connect(address, NAMESPACE, fail_open=False, timeout_s=10)


def test_the_adapter_fits_in_the_eye() -> None:
    assert len(ADAPTER.splitlines()) < 60


def test_its_contract_test_passes(plugins: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(plugins)]
    done = subprocess.run(
        [*command, str(plugins / "test_sqlite.py")],
        env=environment(plugins),
        cwd=plugins,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_its_types_are_right(plugins: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "-p", "kv_plugins", "-m", "test_sqlite"],
        env={**os.environ, "MYPYPATH": f"{plugins}:{ROOT}"},
        cwd=plugins,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_server_stored_there_is_there_for_the_next_one(plugins: Path) -> None:
    assert ADAPTERS[0]["type"] == "kv_plugins.sqlite"
    path = plugins / "objects.db"
    adapter = {**ADAPTERS[0], "path": str(path), "cascade": "commit"}
    with serving(plugins, adapter) as address, connect(address) as cache:
        assert store(cache, prompt(cache, 1)) == CHUNKS
        with contextlib.closing(sqlite3.connect(path)) as database:
            count = "SELECT count(*) FROM objects"
            wait_until(lambda: database.execute(count).fetchone() == (CHUNKS,))
    with serving(plugins, adapter) as address, connect(address) as cache:
        assert retrieve(cache, prompt(cache, 2)) == 0
        assert retrieve(cache, prompt(cache, 1)) == CHUNKS


@pytest.mark.parametrize("adapter", ADAPTERS[1:], ids=lambda adapter: " ".join(list(adapter)[2:]))
def test_every_drill_is_valid(adapter: dict[str, Any]) -> None:
    spec = AdapterSpec(adapter)
    assert spec.common.type == "fault"
    table = re.findall(r"^\| (`.*?) \|", SECTION, re.MULTILINE)
    told = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert told == set(spec.config.__struct_fields__) - {"of"}
