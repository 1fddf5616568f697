"""What is secret is shown nowhere: not by a log, a status page, a command line or an exception."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import bus
from http_apis.app import create_app
from http_apis.door import Door
from http_apis.registry import flat
from lmcache_mp import messages as m
from lmcache_mp.client import CacheClient
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.key_files import curve_for
from lmcache_mp.keys import chunk_keys, tenant_of
from tests.test_cli import Server, run
from tests.waiting import wait_until
from tests.world import NAMESPACE, short_directory

TOKEN = "token-that-nobody-may-see-4711"
SALT = "salt-that-nobody-may-see-4711"
LORA = "lora-that-nobody-may-see-4711"
EXTRA = "image-that-nobody-may-see-4711"
IDENTITY: dict[str, Any] = {"salt": SALT, "lora": LORA, "extra": [(0, EXTRA)]}
CURVE_SECRET = re.compile(r'secret-key = "(.{40})"')


class Guarded:
    """A server with a token, keys and every log line there is, and a client beside it."""

    def __init__(self, directory: Path) -> None:
        self.secrets = {"token": TOKEN, "salt": SALT, "LoRA": LORA, "extra key": EXTRA}
        self.shown: dict[str, str] = {}
        token_file, keys, client_key = (directory / name for name in ("token", "keys", "c.key"))
        token_file.touch(mode=0o600)
        token_file.write_text(TOKEN)
        for words in (("server", keys), ("client", keys, "one", "--out", client_key)):
            done = run("keys", *map(str, words))
            assert done.returncode == 0, done
            self.shown[f"keys {words[0]}"] = done.stdout + done.stderr
        for whose, path in (("server", keys / "server.key_secret"), ("client", client_key)):
            found = CURVE_SECRET.search(path.read_text())
            assert found is not None
            self.secrets[f"{whose}'s CURVE key"] = found[1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.tcp = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.client_key = client_key
        self._flags = ["--http-token-file", str(token_file), "--bus-keys", str(keys)]
        self._flags += ["--bus", self.tcp, "--log-level", "debug"]
        self.server = Server(*self._flags)

    @property
    def ipc(self) -> str:
        return f"ipc://{self.server.run_dir}/bus.sock"

    def use(self) -> None:
        """A client stores, is killed off from its engine, and retrieves; others are refused."""
        report = self.server.ready()
        with CacheClient.connect(self.ipc, NAMESPACE, timeout_s=10) as cache:
            self._learn_ids("ipc client")
            keys = cache.chunk_keys(range(12), **IDENTITY)
            with cache.store(keys) as batch:
                assert len(list(batch.slots())) == 3
            self.shown["client"] = repr([cache, keys, batch, NAMESPACE, cache.counters])
            self.look("in use")
            os.kill(report.processes["engine"].pid, signal.SIGKILL)
            self.server.restarted("engine", report.processes["engine"].pid)
            with cache.retrieve(keys) as hit:
                assert len(list(hit.slots())) == 3
            with pytest.raises(ValueError, match="salt") as raised:
                cache.chunk_keys(range(12), salt=SALT + "\udc80")
            self.shown["bad salt"] = repr(raised.value)
            link = cache._session.link(Deadline(10))  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(bus.CallError) as unknown:
                link.client.call(m.CommitStore(lease_id=10**6))
            assert "holds no lease" in str(unknown.value)
            self.shown["unknown lease"] = repr(unknown.value)
        with CacheClient.connect(
            self.tcp, NAMESPACE, key_file=self.client_key, timeout_s=10, fail_open=False
        ) as remote:
            assert remote.lookup(remote.chunk_keys(range(12), **IDENTITY)).hit_chunks == 3
            self.shown["curve"] = repr(curve_for(self.tcp, self.client_key))
            with pytest.raises(bus.CallError) as refused, remote.store(keys):
                pass
            self.shown["refused store"] = "".join(traceback.format_exception(refused.value))
        with pytest.raises(bus.Unavailable) as nobody:
            bus.Client(self.tcp)
        self.shown["keyless"] = repr(nobody.value)

    def _learn_ids(self, whose: str) -> None:
        for number, path in enumerate((self.server.run_dir / "clients").iterdir()):
            self.secrets[f"id {number} of {whose}"] = path.name
        assert f"id 0 of {whose}" in self.secrets

    def look(self, when: str) -> None:
        """Everything that can be looked at."""
        report = self.server.ready()
        for command in (
            ("status", "--json"),
            ("status",),
            ("config", *self._flags),
            ("config", "--json", *self._flags),
            ("check",),
            ("doctor", *self._flags),
        ):
            done = self.server.run(*command)
            self.shown[f"{' '.join(command[:2])} {when}"] = done.stdout + done.stderr
        with bus.Client(self.ipc) as observer:
            self.shown[f"Status {when}"] = repr(observer.call(m.Status()))
            self.shown[f"GetConfig {when}"] = repr(observer.call(m.GetConfig()))
            self.shown[f"Check {when}"] = repr(observer.call(m.Check()))
        base = report.processes["http"].address
        with httpx.Client(base_url=base, trust_env=False, timeout=10) as http:
            wait_until(lambda: http.get("/healthcheck").status_code == 200)
            for path in get_routes():
                answer = http.get(path)
                self.shown[f"GET {path} {when}"] = f"{answer.headers}{answer.text}"
        process = psutil.Process(self.server.process.pid)
        everybody = [process, *process.children(recursive=True)]
        self.shown[f"command lines {when}"] = repr([each.cmdline() for each in everybody])
        self.shown[f"settings {when}"] = (self.server.run_dir / "config.json").read_text()

    def show_tokens(self) -> None:
        """Wrong ones, the right one in a wrong place, and at last the right one."""
        address = self.server.ready().processes["http"].address
        with httpx.Client(base_url=address, trust_env=False, timeout=10) as http:
            for given in (TOKEN, f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN}"):
                answer = http.post("/clear-cache", headers={"Authorization": given, "X": TOKEN})
                self.shown[f"{given[:5]} {answer.status_code}"] = f"{answer.headers}{answer.text}"
            assert answer.status_code == 200

    def end(self) -> None:
        assert self.server.stop() == 0
        self.shown["log"] = self.server.log.read_text()


def get_routes() -> Iterator[str]:
    """Every GET route that needs no parameter in its path."""
    app = create_app("ipc:///nobody", Door("127.0.0.1", (), None))
    for route in flat(app.routes):
        if "GET" in (getattr(route, "methods", None) or ()) and "{" not in route.path:
            yield route.path


def test_get_routes_finds_those_that_there_are() -> None:
    assert {"/", "/status", "/healthcheck", "/openapi.json", "/docs"} <= set(get_routes())


def test_no_secret_is_shown_by_a_server_in_use(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with short_directory() as directory, contextlib.ExitStack() as at_end:
        guarded = Guarded(directory)
        at_end.callback(guarded.server.end)
        guarded.use()
        guarded.look("after")
        guarded.show_tokens()
        guarded.end()
    ours = [record for record in caplog.records if record.name.startswith(("bus", "lmcache_mp"))]
    shown = {**guarded.shown, "client's log": "\n".join(map(logging.Formatter().format, ours))}
    leaks = [
        f"{where} shows the {what}: {line.strip()[:200]}"
        for where, text in shown.items()
        for what, secret in guarded.secrets.items()
        for line in text.splitlines()
        if secret in line
    ]
    assert leaks == []
    log = shown["log"]  # of every process, at every level, of what was tried
    for said in (" DEBUG ", "uvicorn.access", "status=401", "http token read", "SIGKILL"):
        assert said in log
    assert {"Beare 200", "refused store", "bad salt", "keyless"} <= shown.keys()
    assert len(guarded.secrets) == 7


def test_a_salt_shows_as_a_short_digest_at_most() -> None:
    keys = chunk_keys(NAMESPACE, range(8), **IDENTITY)
    assert SALT not in repr(keys)
    assert len(tenant_of(SALT)) == 8
    assert SALT.encode() not in tenant_of(SALT)
    assert SALT.encode() not in keys.buffer
    store = m.PrepareStore(namespace_id=1, keys=keys.buffer, tenant=keys.tenant)
    assert SALT not in repr(store)


@pytest.mark.parametrize(
    "identity",
    [
        {"salt": f"{SALT}\udc80"},
        {"salt": SALT.encode()},
        {"salt": [SALT]},
        {"lora": f"{SALT}\udc80"},
        {"lora": SALT.encode()},
        {"extra": [(0, f"{SALT}\udc80")]},
        {"extra": [(0, [SALT])]},
        {"extra": [(-1, SALT)]},
        {"salt": SALT, "extra": [(0, None)]},
    ],
)
def test_no_exception_carries_a_part_of_the_identity(identity: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^(salt|lora|extra key at token position -?\d)"
    ) as raised:
        chunk_keys(NAMESPACE, range(8), **identity)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    for told in (repr(raised.value), *traceback.format_exception(raised.value)):
        assert SALT not in told
