"""The `s3` adapter against a real server."""

from __future__ import annotations

import contextlib
import http.server
import mmap
import os
import secrets
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from typing_extensions import override

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.s3 import Adapter, Config
from lmcache_mp.testing import check_l2_adapter
from tests.l2 import stores
from tests.l2.certificates import make_certificates
from tests.l2.fs_world import aligned
from tests.waiting import wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[stores.S3Server]:
    """A running server; obstore's own descriptors, which this process keeps, are open too."""
    with stores.s3_server() as running, pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        for name, value in stores.S3_ENVIRONMENT.items():
            environment.setenv(name, value)
        with opened(running) as adapter:
            adapter.lookup([bytes(32)])
        yield running


@pytest.fixture(autouse=True)
def _server_is_up(server: stores.S3Server) -> None:
    """Before the guard of what is left behind looks for the first time."""


@contextlib.contextmanager
def opened(server: stores.S3Server, **settings: Any) -> Generator[Adapter, None, None]:
    adapter = Adapter(config_of(server, **settings))
    try:
        yield adapter
    finally:
        adapter.close()


def config_of(server: stores.S3Server, **settings: Any) -> Config:
    own_prefix = f"s3://{stores.BUCKET}/{secrets.token_hex(8)}"
    return Config(
        **{"url": own_prefix, "endpoint": server.endpoint, "region": "eu-west-1"} | settings
    )


def fault_of(server: stores.S3Server, **settings: Any) -> AdapterError:
    """Why it cannot be opened."""
    with pytest.raises(AdapterError) as raised, opened(server, **settings):
        pass
    return raised.value


def filled(size: int) -> tuple[bytes, list[memoryview]]:
    content = secrets.token_bytes(size)
    parts = aligned(size)
    parts[0][:], parts[1][:] = content[: len(parts[0])], content[len(parts[0]) :]
    return content, parts


def loaded(adapter: Adapter, key: bytes, size: int) -> bytes | None:
    parts = aligned(size)
    length = adapter.load(key, parts)
    assert length in (None, size)
    return None if length is None else b"".join(parts)


def test_it_keeps_the_contract(server: stores.S3Server) -> None:
    theirs = stores.their_s3()
    config = config_of(server, **({} if theirs is None else {"endpoint": theirs}))
    check_l2_adapter(lambda: Adapter(config))


def test_an_object_is_one_of_the_bucket_under_the_prefix_and_the_hex_of_its_key(
    server: stores.S3Server,
) -> None:
    content, parts = filled(6 * MIB)  # more than what the library would put in one piece by itself
    key = secrets.token_bytes(32)
    config = config_of(server)
    prefix = config.url.removeprefix(f"s3://{stores.BUCKET}/")
    whole = obstore.store.S3Store(
        stores.BUCKET,
        endpoint=server.endpoint,
        region="eu-west-1",
        client_options={"allow_http": True},
    )
    with opened(server, url=config.url) as adapter:
        adapter.store(key, parts)
        found = [item["path"] for page in obstore.list(whole, prefix) for item in page]
        assert found == [f"{prefix}/{key.hex()}"]
        assert bytes(obstore.get(whole, found[0]).bytes()) == content


def test_threads_do_not_get_each_others_objects(server: stores.S3Server) -> None:
    objects = {secrets.token_bytes(32): filled(MIB // 4) for _ in range(4)}
    wrong: list[bytes] = []

    def use(adapter: Adapter, key: bytes) -> None:
        content, parts = objects[key]
        for _ in range(3):
            adapter.store(key, parts)
            if loaded(adapter, key, len(content)) != content or adapter.lookup([key]) != [True]:
                wrong.append(key)

    with opened(server) as adapter:
        threads = [threading.Thread(target=use, args=(adapter, key)) for key in objects]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_lookup_answers_for_more_keys_than_it_asks_for_at_a_time(server: stores.S3Server) -> None:
    keys = [secrets.token_bytes(32) for _ in range(70)]
    _, parts = filled(8192)
    with opened(server) as adapter:
        for key in (keys[0], keys[33], keys[69]):
            adapter.store(key, parts)
        found = adapter.lookup(keys)
    assert [at for at, is_there in enumerate(found) if is_there] == [0, 33, 69]


def test_an_object_of_another_length_is_not_read(server: stores.S3Server) -> None:
    key = secrets.token_bytes(32)
    with opened(server) as adapter:
        adapter.store(key, filled(MIB)[1])
        for size in (8192, 2 * MIB):
            parts = aligned(size)
            assert adapter.load(key, parts) == MIB
            assert not any(parts[0])


def test_scan_passes_over_what_is_not_its_own(server: stores.S3Server) -> None:
    key = secrets.token_bytes(32)
    config = config_of(server)
    place = config.url.removeprefix("s3:/")
    with opened(server, url=config.url) as adapter:
        for name in ("zz", "abcd", f"deeper/{key.hex()}"):
            server.request(f"{place}/{name}", b"x", "PUT")
        adapter.store(key, filled(8192)[1])
        assert list(adapter.scan()) == [key]


def test_memory_that_was_stored_is_let_go_of(server: stores.S3Server) -> None:
    memory = mmap.mmap(-1, MIB)
    with opened(server) as adapter, memoryview(memory) as view:
        parts = [view[: mmap.PAGESIZE], view[mmap.PAGESIZE :]]
        adapter.store(secrets.token_bytes(32), parts)
        for part in parts:
            part.release()  # raises BufferError if somebody still has it
    memory.close()


def test_a_bucket_that_is_not_there_is_a_lasting_fault(server: stores.S3Server) -> None:
    fault = fault_of(server, url="s3://no-such-bucket/x")
    assert f"s3://no-such-bucket/x at {server.endpoint} has no such bucket" in str(fault)
    assert fault.lasting


def test_a_bucket_that_is_removed_fails_loads_rather_than_miss(server: stores.S3Server) -> None:
    server.request("/short-lived", b"", "PUT")
    with opened(server, url="s3://short-lived/x") as adapter:
        server.request("/short-lived", b"", "DELETE")
        uses: list[Callable[[], object]] = [
            lambda: adapter.load(bytes(32), aligned(8192)),
            lambda: adapter.store(bytes(32), aligned(8192)),
            lambda: list(adapter.scan()),
        ]
        for use in uses:
            with pytest.raises(AdapterError, match="has no such bucket") as raised:
                use()
            assert raised.value.lasting


def test_wrong_credentials_are_a_lasting_fault_that_does_not_tell_them(
    server: stores.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATELLNOBODY000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tell-nobody")
    server.check_credentials(really=True)
    try:
        fault = fault_of(server)
    finally:
        server.check_credentials(really=False)
    assert "the credentials are wrong" in str(fault)
    assert fault.lasting
    said = "".join(traceback.format_exception(fault))
    assert "tell-nobody" not in said
    assert "AKIATELLNOBODY000000" not in said


def test_a_store_that_is_not_there_is_a_passing_fault(server: stores.S3Server) -> None:
    fault = fault_of(server, endpoint=f"http://127.0.0.1:{stores.free_port()}")
    assert "cannot be reached: Connection refused" in str(fault)
    assert not fault.lasting
    fault = fault_of(server, endpoint="http://no-such-host.invalid")
    assert "cannot be reached" in str(fault)


def test_settings_that_cannot_be_meant_are_lasting_faults(server: stores.S3Server) -> None:
    for settings, sentence in (
        ({"ca_file": "/no/ca.pem"}, "/no/ca.pem: No such file"),
        ({"ca_file": "/dev/null"}, "No certificates found in `root_certificate`"),
        ({"url": "gs://b/p"}, "'endpoint' is not valid for store 'GCS'"),
    ):
        fault = fault_of(server, **settings)
        assert sentence in str(fault)
        assert fault.lasting


def test_a_certificate_must_verify(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    with stores.s3_server(made) as with_tls:
        fault = fault_of(with_tls)
        assert "a certificate that does not verify" in str(fault)
        assert fault.lasting
        trusting = fault_of(with_tls, ca_file=str(made.ca), url="s3://no-such-bucket/x")
        assert "has no such bucket" in str(trusting), "the certificate did not verify"


def test_a_store_that_hangs_costs_the_timeout_once(server: stores.S3Server) -> None:
    key = secrets.token_bytes(32)
    content, parts = filled(MIB)
    with (
        opened(server) as prepared,
        opened(server, url=prepared.config.url, timeout_s=0.3) as hasty,
    ):
        prepared.store(key, parts)
        with server.stopped():
            uses: list[Callable[[], object]] = [
                lambda: hasty.load(key, aligned(MIB)),
                lambda: hasty.store(key, parts),
                lambda: hasty.lookup([key]),
            ]
            for use in uses:
                with pytest.raises(AdapterError, match="did not answer in time") as raised:
                    use()
                assert not raised.value.lasting
        wait_until(lambda: loaded(prepared, key, MIB) == content)


def test_a_store_that_was_killed_and_started_again_is_used_again() -> None:
    key = secrets.token_bytes(32)
    content, parts = filled(MIB)
    port = stores.free_port()
    with stores.s3_server(port=port) as mortal, opened(mortal, timeout_s=5) as adapter:
        adapter.store(key, parts)
        mortal.kill()
        uses: list[Callable[[], object]] = [
            lambda: adapter.load(key, aligned(MIB)),
            lambda: adapter.store(key, parts),
        ]
        for use in uses:
            with pytest.raises(AdapterError, match="cannot be reached") as raised:
                use()
            assert not raised.value.lasting
        mortal.start()
        mortal.make_bucket()
        assert loaded(adapter, key, MIB) is None
        adapter.store(key, parts)
        assert loaded(adapter, key, MIB) == content


class BreaksOff(http.server.BaseHTTPRequestHandler):
    """A bucket without objects, whose every object ends in the middle."""

    def do_GET(self) -> None:
        listing = "list-type=2" in self.path
        body = b"<ListBucketResult></ListBucketResult>" if listing else b"half of it"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if listing else MIB))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing to the test's output."""


def test_an_object_that_breaks_off_is_a_passing_fault(server: stores.S3Server) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as broken:
        thread = threading.Thread(target=broken.serve_forever, args=(0.01,))
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{broken.server_port}"
            with opened(server, endpoint=endpoint) as adapter:
                with pytest.raises(AdapterError, match="failed") as raised:
                    adapter.load(bytes(32), aligned(MIB))
                assert not raised.value.lasting
        finally:
            broken.shutdown()
            thread.join()


def test_without_the_library_settings_can_be_checked_and_opening_says_what_to_install() -> None:
    program = """
import sys
sys.modules["obstore"] = None
from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.s3 import Adapter, Config
try:
    Adapter(Config(url="s3://bucket"))
except AdapterError as fault:
    print(fault.lasting, fault)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("True its library is missing"), done.stderr
    assert "pip install 'lmcache-mp[s3]'" in done.stdout
