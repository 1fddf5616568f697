"""The `redis` adapter against real servers."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.redis import Adapter, Config
from lmcache_mp.testing import check_l2_adapter
from tests.l2 import stores
from tests.l2.certificates import Certificates, make_certificates
from tests.l2.fs_world import aligned
from tests.waiting import wait_until

MIB = 1 << 20
PASSWORD = "correct horse"


@pytest.fixture
def server() -> Iterator[stores.RedisServer]:
    with stores.redis_server() as running:
        yield running


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


@contextlib.contextmanager
def opened(url: str, **settings: Any) -> Generator[Adapter, None, None]:
    adapter = Adapter(Config(url=url, **settings))
    try:
        yield adapter
    finally:
        adapter.close()


def fault_of(url: str, **settings: Any) -> AdapterError:
    """Why it cannot be opened."""
    with pytest.raises(AdapterError) as raised, opened(url, **settings):
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


def test_it_keeps_the_contract() -> None:
    url = stores.their_redis()
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(stores.redis_server()).unix_url
        prefix = f"test-{secrets.token_hex(8)}:"
        check_l2_adapter(lambda: Adapter(Config(url=url, prefix=prefix)))


def test_it_keeps_the_contract_through_tls(certificates: Certificates) -> None:
    with stores.redis_with_tls(certificates) as (_, url):
        check_l2_adapter(lambda: Adapter(Config(url=url, ca_file=str(certificates.ca))))


def test_it_keeps_the_contract_on_a_cluster_that_it_notices_by_itself() -> None:
    with stores.redis_cluster() as nodes:
        check_l2_adapter(lambda: Adapter(Config(url=nodes[0].tcp_url)))


def test_an_object_is_one_string_under_the_prefix_and_the_hex_of_its_key(
    server: stores.RedisServer,
) -> None:
    content, parts = filled(MIB)
    key = secrets.token_bytes(32)
    with opened(server.unix_url, prefix="mine:") as adapter, server.console() as console:
        adapter.store(key, parts)
        assert console.keys() == [b"mine:" + key.hex().encode()]
        assert console.get("mine:" + key.hex()) == content
        assert console.ttl("mine:" + key.hex()) == -1


def test_values_of_any_length_arrive_whole_and_leave_the_connection_usable(
    server: stores.RedisServer,
) -> None:
    with opened(server.unix_url) as adapter, server.console() as console:
        for size in (0, 1, 2, 4085, 4086, 4087, 4088, 4095, 4096, 8192, 70_000, 5 * MIB + 3):
            key, content = secrets.token_bytes(32), secrets.token_bytes(size)
            console.set(f"lmcache-mp:{key.hex()}", content)
            for room in {size, size + 1, max(size - 1, 0), 16}:
                target = memoryview(bytearray(room))
                assert adapter.load(key, [target[: room // 3], target[room // 3 :]]) == size
                both = min(size, room)
                assert target[:both] == content[:both]
                assert not any(target[both:])
        assert adapter.lookup([secrets.token_bytes(32)]) == [False]


def test_threads_do_not_get_each_others_objects(server: stores.RedisServer) -> None:
    objects = {secrets.token_bytes(32): filled(MIB // 4) for _ in range(8)}
    wrong: list[bytes] = []

    def use(adapter: Adapter, key: bytes) -> None:
        content, parts = objects[key]
        for _ in range(10):
            adapter.store(key, parts)
            if loaded(adapter, key, len(content)) != content or adapter.lookup([key]) != [True]:
                wrong.append(key)

    with opened(server.unix_url) as adapter:
        threads = [threading.Thread(target=use, args=(adapter, key)) for key in objects]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_key_that_holds_something_else_is_an_object_of_another_length(
    server: stores.RedisServer,
) -> None:
    key = secrets.token_bytes(32)
    with opened(server.unix_url) as adapter, server.console() as console:
        console.rpush(f"lmcache-mp:{key.hex()}", "a list")
        assert adapter.lookup([key]) == [True]
        assert adapter.load(key, aligned(MIB)) == 0
        adapter.delete([key])
        assert adapter.load(key, aligned(MIB)) is None


def test_scan_passes_over_what_is_not_its_own(server: stores.RedisServer) -> None:
    key = secrets.token_bytes(32)
    with opened(server.unix_url) as adapter, server.console() as console:
        for name in ("lmcache-mp:", "lmcache-mp:zz", "lmcache-mp:abcd", "other:" + key.hex()):
            console.set(name, "x")
        adapter.store(key, filled(8192)[1])
        assert list(adapter.scan()) == [key]


def test_objects_expire_after_their_last_use(server: stores.RedisServer) -> None:
    key = secrets.token_bytes(32)
    name = f"lmcache-mp:{key.hex()}"
    content, parts = filled(8192)
    with opened(server.unix_url, ttl_s=1000) as adapter, server.console() as console:
        adapter.store(key, parts)
        assert 990 <= console.ttl(name) <= 1000
        console.expire(name, 5)
        assert loaded(adapter, key, 8192) == content
        assert 990 <= console.ttl(name) <= 1000
        console.pexpire(name, 1)
        wait_until(lambda: adapter.lookup([key]) == [False])
        assert loaded(adapter, key, 8192) is None


def test_the_password_is_taken_from_the_url_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    with stores.redis_server("--requirepass", PASSWORD) as server:
        path = server.unix_url.removeprefix("unix://")
        for url in (f"unix://:correct%20horse@{path}", f"unix://default:correct%20horse@{path}"):
            with opened(url) as adapter:
                assert adapter.lookup([bytes(32)]) == [False]
        with opened(server.unix_url, password_file=str(file)) as adapter:
            assert adapter.lookup([bytes(32)]) == [False]
        monkeypatch.setenv("REDISCLI_AUTH", PASSWORD)
        with opened(server.unix_url) as adapter:
            assert adapter.lookup([bytes(32)]) == [False]


def test_a_wrong_password_is_a_lasting_fault_that_does_not_tell_it() -> None:
    with stores.redis_server("--requirepass", PASSWORD, port=stores.free_port()) as server:
        path = server.unix_url.removeprefix("unix://")
        for url in (
            f"unix://:tell-nobody@{path}",
            f"redis://u:tell-nobody@127.0.0.1:{server.port}",
        ):
            fault = fault_of(url)
            assert fault.lasting
            assert "does not accept the user and password" in str(fault)
            assert "tell-nobody" not in "".join(traceback.format_exception(fault))
        fault = fault_of(server.unix_url)
        assert fault.lasting
        assert "does not accept the user and password" in str(fault)


def test_a_user_who_may_not_write_learns_so(server: stores.RedisServer) -> None:
    with server.console() as console:
        console.execute_command("ACL", "SETUSER", "reader", "on", ">r", "~*", "+@read", "+hello")
    path = server.unix_url.removeprefix("unix://")
    with opened(f"unix://reader:r@{path}") as adapter:
        with pytest.raises(AdapterError, match="does not allow this user") as raised:
            adapter.store(bytes(32), filled(8192)[1])
        assert raised.value.lasting


@pytest.mark.parametrize(
    ("url", "settings", "sentence"),
    [
        ("redis://h:6379/?ssl_cert_reqs=none", {}, "ssl_cert_reqs: only db can follow"),
        ("redis://u:tell-nobody@h:port/", {}, "url is no URL"),
        ("unix://", {}, "url names no socket"),
        ("redis://h", {"ca_file": "/ca.pem"}, "TLS is rediss://"),
        ("rediss://h", {"ca_file": "/no/ca.pem"}, "/no/ca.pem: No such file"),
        ("redis://h", {"password_file": "/no/such"}, "password_file /no/such: No such file"),
        ("redis://h", {"password_file": "/dev/null"}, "password_file /dev/null is empty"),
        ("redis://:tell-nobody@h", {"password_file": "/dev/null"}, "a password in the URL and"),
    ],
)
def test_settings_that_cannot_be_meant_are_lasting_faults(
    url: str, settings: dict[str, Any], sentence: str
) -> None:
    fault = fault_of(url, **settings)
    assert sentence in str(fault)
    assert fault.lasting
    assert "tell-nobody" not in "".join(traceback.format_exception(fault))


def test_a_server_that_is_not_there_is_a_passing_fault(tmp_path: Path) -> None:
    for url in (f"redis://127.0.0.1:{stores.free_port()}", f"unix://{tmp_path}/socket"):
        fault = fault_of(url)
        assert "cannot be reached" in str(fault)
        assert not fault.lasting
    assert "cannot be reached" in str(fault_of("redis://no-such-host.invalid"))


def test_a_certificate_that_does_not_verify_is_a_lasting_fault(
    certificates: Certificates, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    of_another_host = make_certificates(elsewhere, "127.0.0.9")
    for shown, trusted in ((certificates, None), (of_another_host, str(of_another_host.ca))):
        with stores.redis_with_tls(shown) as (_, url):
            fault = fault_of(url, ca_file=trusted)
            assert "does not verify" in str(fault)
            assert fault.lasting


def test_a_server_may_ask_for_a_certificate(certificates: Certificates) -> None:
    asked = ("--tls-auth-clients", "yes")
    shown = {"cert_file": str(certificates.certificate), "key_file": str(certificates.key)}
    trusted = str(certificates.ca)
    with stores.redis_with_tls(certificates, *asked) as (_, url):
        with opened(url, ca_file=trusted, **shown) as adapter:
            assert adapter.lookup([bytes(32)]) == [False]
        assert "cannot be reached" in str(fault_of(url, ca_file=trusted))


def test_a_server_that_was_killed_and_started_again_is_used_again(
    server: stores.RedisServer,
) -> None:
    key = secrets.token_bytes(32)
    content, parts = filled(MIB)
    with opened(server.unix_url) as adapter:
        adapter.store(key, parts)
        server.kill()
        uses: list[Callable[[], object]] = [
            lambda: adapter.load(key, aligned(MIB)),
            lambda: adapter.store(key, parts),
        ]
        for use in uses:
            with pytest.raises(AdapterError, match="cannot be reached") as raised:
                use()
            assert not raised.value.lasting
        server.start()
        assert loaded(adapter, key, MIB) is None
        adapter.store(key, parts)
        assert loaded(adapter, key, MIB) == content


def test_a_server_that_hangs_costs_the_timeout_and_no_late_answer_is_taken_for_another(
    server: stores.RedisServer,
) -> None:
    first, second, third = (secrets.token_bytes(32) for _ in range(3))
    big = 32 * MIB  # more than the buffers between us and the server
    content, parts = filled(big)
    with opened(server.unix_url, timeout_s=0.2) as adapter:
        adapter.store(first, parts)
        with server.stopped():
            uses: list[Callable[[], object]] = [
                lambda: adapter.load(first, aligned(big)),
                lambda: adapter.lookup([first]),
                lambda: adapter.store(third, parts),
            ]
            for use in uses:
                with pytest.raises(AdapterError, match="did not answer in time") as raised:
                    use()
                assert not raised.value.lasting
        assert adapter.lookup([first, second]) == [True, False]
        assert adapter.load(second, aligned(MIB)) is None
        assert adapter.lookup([third]) == [False], "half a store is visible"
        assert loaded(adapter, first, big) == content


def test_a_server_that_dies_while_it_answers_is_a_passing_fault(
    server: stores.RedisServer,
) -> None:
    with opened(server.unix_url) as adapter:
        server.signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as reader:
            outcome = reader.submit(adapter.load, bytes(32), aligned(MIB))
            server.kill()
            with pytest.raises(AdapterError, match="cannot be reached") as raised:
                outcome.result(timeout=10)
        assert not raised.value.lasting


def test_a_full_server_refuses_stores_and_serves_loads() -> None:
    keys = [secrets.token_bytes(32) for _ in range(8)]
    content, parts = filled(MIB)
    with stores.redis_server("--maxmemory", "4mb") as server, opened(server.unix_url) as adapter:
        with pytest.raises(AdapterError, match="is full: raise its maxmemory") as raised:
            store_all(adapter, keys, parts)
        assert raised.value.lasting
        assert loaded(adapter, keys[0], MIB) == content
        assert adapter.lookup([keys[0], keys[-1]]) == [True, False]


def test_a_replica_cannot_be_written_to_until_it_is_the_primary(
    server: stores.RedisServer,
) -> None:
    key = secrets.token_bytes(32)
    _, parts = filled(8192)
    with opened(server.unix_url) as adapter, server.console() as console:
        console.replicaof("127.0.0.1", str(stores.free_port()))
        with pytest.raises(AdapterError, match="is a replica") as raised:
            adapter.store(key, parts)
        assert not raised.value.lasting
        assert console.info("clients")["connected_clients"] == 1, "it kept the connection"
        console.replicaof("NO", "ONE")
        adapter.store(key, parts)


def test_a_node_of_a_cluster_that_dies_costs_its_own_objects() -> None:
    objects = {secrets.token_bytes(32): filled(8192) for _ in range(30)}
    with stores.redis_cluster() as nodes, opened(nodes[0].tcp_url, timeout_s=2) as adapter:
        for key, (_, parts) in objects.items():
            adapter.store(key, parts)
        nodes[2].kill()
        served = lost = 0
        for key, (content, _) in objects.items():
            try:
                found = loaded(adapter, key, 8192)
            except AdapterError as fault:
                lost += not fault.lasting
            else:
                served += found == content
        assert served + lost == len(objects)
        assert served > 0
        assert lost > 0


def test_slots_that_move_to_another_node_are_followed() -> None:
    key = secrets.token_bytes(32)
    content, parts = filled(MIB)
    with stores.redis_cluster() as nodes, opened(nodes[0].tcp_url) as adapter:
        name = f"lmcache-mp:{key.hex()}"
        adapter.store(key, parts)
        with contextlib.ExitStack() as stack:
            consoles = [stack.enter_context(node.console()) for node in nodes]
            slot = consoles[0].cluster("keyslot", name)
            ids = [console.execute_command("CLUSTER MYID").decode() for console in consoles]
            (source,) = (at for at, node in enumerate(nodes) if owns(node, name))
            target = (source + 1) % len(nodes)
            consoles[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
            consoles[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
            consoles[source].migrate("127.0.0.1", str(nodes[target].port), [name], 0, 5000)
            assert loaded(adapter, key, MIB) == content, "between the nodes: ASK"
            for console in (consoles[target], consoles[source]):
                console.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
            assert loaded(adapter, key, MIB) == content, "after: MOVED"
            adapter.store(key, parts)


def store_all(adapter: Adapter, keys: list[bytes], parts: list[memoryview]) -> None:
    for key in keys:
        adapter.store(key, parts)


def owns(node: stores.RedisServer, name: str) -> bool:
    """Whether the key is this node's; the others say MOVED."""
    with node.console() as console:
        try:
            console.exists(name)
        except redis.ResponseError:
            return False
        return True


def test_a_cluster_said_to_be_none_is_a_lasting_fault() -> None:
    with stores.redis_cluster() as nodes:
        # the key that opening asks for belongs to one of them, so another one says where it is
        probed = f"lmcache-mp:{bytes(32).hex()}"
        faults = [fault_of(node.tcp_url, cluster=False) for node in nodes if not owns(node, probed)]
        assert len(faults) == 2
        for fault in faults:
            assert "is a cluster: leave `cluster` unset" in str(fault)
            assert fault.lasting
        assert "database 0 only" in str(fault_of(nodes[0].tcp_url + "/3", cluster=True))


def test_a_server_said_to_be_a_cluster_is_a_fault() -> None:
    with stores.redis_server(port=stores.free_port()) as server:
        assert "does not answer as a cluster" in str(fault_of(server.tcp_url, cluster=True))


def test_a_connection_that_closes_in_the_middle_of_a_value_is_a_passing_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        replies = [b"-ERR unknown command\r\n", b":0\r\n", b"$1048576\r\nhalf of it"]

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, peer.makefile("rb") as asked:
                while replies:
                    words = int(asked.readline()[1:])
                    command = [asked.readline() and asked.readline() for _ in range(words)]
                    about_itself = command[0].strip().upper() in (b"CLIENT", b"SELECT")
                    peer.sendall(b"+OK\r\n" if about_itself else replies.pop(0))

        thread = threading.Thread(target=serve)
        thread.start()
        with opened(f"redis://127.0.0.1:{port}") as adapter:
            with pytest.raises(AdapterError, match="closed the connection") as raised:
                adapter.load(bytes(32), aligned(MIB))
            assert not raised.value.lasting
        thread.join()


def test_without_the_library_settings_can_be_checked_and_opening_says_what_to_install() -> None:
    program = """
import sys
sys.modules["redis"] = None
from lmcache_mp.l2 import AdapterError
from lmcache_mp.l2.redis import Adapter, Config
try:
    Adapter(Config(url="redis://localhost"))
except AdapterError as fault:
    print(fault.lasting, fault)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("True its library is missing"), done.stderr
    assert "pip install 'lmcache-mp[redis]'" in done.stdout
