"""What is injected happens as often as it is said to, as the seed has it, and only then."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lmcache_mp.l2 import ENVELOPE_BYTES, AdapterError
from lmcache_mp.l2.fault import Adapter
from lmcache_mp.tiering.spec import AdapterSpec, BadAdapter
from tests.waiting import wait_until

KEY = b"k" * 32
PAGES = 8
CONTENT = bytes(range(256)) * (PAGES * ENVELOPE_BYTES // 256)


def mapping(**settings: Any) -> dict[str, Any]:
    return {"type": "fault", "of": {"type": "memory"}, **settings}


def adapter(**settings: Any) -> Adapter:
    opened = AdapterSpec(mapping(**settings)).open()
    assert isinstance(opened, Adapter)
    return opened


def store(cache: Adapter, key: bytes = KEY) -> None:
    cache.store(key, [memoryview(CONTENT[:ENVELOPE_BYTES]), memoryview(CONTENT[ENVELOPE_BYTES:])])


def load(cache: Adapter, key: bytes = KEY) -> bytes | None:
    parts = [memoryview(bytearray(ENVELOPE_BYTES)) for _ in range(PAGES)]
    length = cache.load(key, parts)
    return None if length is None else b"".join(parts)[:length]


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except AdapterError:
        return True
    return False


def failures(cache: Adapter, calls: int = 400) -> list[bool]:
    return [fails(lambda: load(cache)) for _ in range(calls)]


def in_a_child(settings: dict[str, Any], code: str) -> subprocess.Popen[str]:
    """A process that opens an adapter as `cache`, and then does as told."""
    program = (
        "import json, sys\nfrom lmcache_mp.tiering.spec import AdapterSpec\n"
        "cache = AdapterSpec(json.loads(sys.argv[1])).open()\n"
        f"print('open', flush=True)\n{code}\nprint('still here', flush=True)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(mapping(**settings))],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_errors_are_as_frequent_as_the_rate_and_as_the_seed_has_them() -> None:
    first = failures(adapter(error_rate=0.25, seed=1))
    assert 60 < sum(first) < 140
    assert failures(adapter(error_rate=0.25, seed=1)) == first
    assert failures(adapter(error_rate=0.25, seed=2)) != first
    assert sum(failures(adapter(error_rate=0))) == 0
    assert sum(failures(adapter(error_rate=1))) == 400


def test_a_verbs_lots_do_not_depend_on_what_else_is_called() -> None:
    alone, busy = adapter(error_rate=0.25), adapter(error_rate=0.25)
    expected = failures(alone, 50)
    seen: list[bool] = []
    for _ in range(50):
        fails(lambda: busy.lookup([KEY]))
        seen += failures(busy, 1)
    assert seen == expected


def test_threads_share_a_verbs_lots() -> None:
    expected = sum(failures(adapter(error_rate=0.25), 400))
    cache = adapter(error_rate=0.25)
    threads = [threading.Thread(target=failures, args=(cache, 100)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert cache.figures()["injected_failed"] == expected


@pytest.mark.parametrize("verb", ["lookup", "store", "load", "delete", "scan"])
def test_only_the_verbs_that_are_named_fail(verb: str) -> None:
    cache = adapter(error_rate=1, verbs=[verb])
    calls: dict[str, Callable[[], object]] = {
        "lookup": lambda: cache.lookup([KEY]),
        "store": lambda: store(cache),
        "load": lambda: load(cache),
        "delete": lambda: cache.delete([KEY]),
        "scan": lambda: list(cache.scan()),
    }
    assert [name for name, call in calls.items() if fails(call)] == [verb]
    with pytest.raises(AdapterError, match=f"injected: this {verb} fails") as caught:
        calls[verb]()
    assert not caught.value.lasting


def test_its_start_can_fail() -> None:
    with pytest.raises(AdapterError, match="injected: this open fails"):
        adapter(error_rate=1, verbs=["open"])
    adapter(error_rate=1).close()


def test_a_delay_is_at_least_as_long_as_it_is_said_to_be() -> None:
    cache = adapter(delay_s=0.05, delay_random_s=0.01, verbs=["store"])
    before_s = time.monotonic()
    store(cache)
    assert time.monotonic() - before_s >= 0.05
    assert load(cache) == CONTENT
    assert cache.figures()["injected_delayed"] == 1
    rare = adapter(delay_s=0.0001, delay_rate=0.25)
    failures(rare, 200)
    assert 20 < rare.figures()["injected_delayed"] < 80


def test_a_hanging_call_ends_when_the_adapter_is_closed() -> None:
    cache = adapter(hang_rate=1, verbs=["load"])
    store(cache)
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(fails(lambda: load(cache))))
    thread.start()
    wait_until(lambda: cache.figures().get("injected_hung") == 1)
    assert thread.is_alive()
    cache.close()
    thread.join(timeout=10)
    assert ended == [True]


def test_a_call_that_hangs_for_ever_outlives_the_close() -> None:
    code = (
        "import threading, time\n"
        "thread = threading.Thread(target=cache.lookup, args=([],))\n"
        "thread.start()\n"
        "while cache.figures().get('injected_hung') != 1: time.sleep(0.01)\n"
        "cache.close()\n"
        "thread.join(0.2)\n"
        "print(thread.is_alive(), flush=True)\n"
    )
    with in_a_child({"hang_rate": 1, "hang_until": "never"}, code) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        assert lines == ["open\n", "True\n", "still here\n"]
        assert child.poll() is None
        child.kill()


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"crash_rate": 1}, "cache.lookup([])", "open\n"),
        ({"crash_rate": 1, "verbs": ["open"]}, "", ""),
        ({"crash_rate": 1, "verbs": ["load"]}, "cache.lookup([])", "open\nstill here\n"),
        ({"crash_after_s": 0}, "cache.lookup([])", "open\n"),
        ({"crash_after_s": 1000}, "cache.lookup([])", "open\nstill here\n"),
        (
            {"crash_after_s": 0.2},
            "import time\nbegin = time.monotonic()\n"
            "while time.monotonic() < begin + 10: cache.lookup([])",
            "open\n",
        ),
    ],
)
def test_a_crash_kills_the_process(settings: dict[str, Any], code: str, said: str) -> None:
    with in_a_child(settings, code) as child:
        output, _ = child.communicate(timeout=20)
    assert output == said
    assert child.returncode == (0 if "still here" in said else -signal.SIGKILL)


def test_corruption_is_one_bit_of_what_was_read() -> None:
    cache = adapter(corrupt_rate=1)
    store(cache)
    places: set[int] = set()
    for _ in range(20):
        loaded = load(cache)
        assert loaded is not None
        changed = int.from_bytes(loaded, "big") ^ int.from_bytes(CONTENT, "big")
        assert changed.bit_count() == 1
        places.add(changed.bit_length())
    assert len(places) > 10
    assert load(cache, b"x" * 32) is None
    assert cache.figures()["injected_corrupted"] == 20


def test_corruption_of_an_object_of_another_length_stays_within_the_parts() -> None:
    cache = adapter(corrupt_rate=1)
    store(cache)
    for pages in (1, PAGES + 1):
        part = memoryview(bytearray(pages * ENVELOPE_BYTES))
        assert cache.load(KEY, [part]) == len(CONTENT)
        assert bytes(part)[: len(CONTENT)] != CONTENT[: len(part)]
        assert not any(part[len(CONTENT) :])


def test_a_torn_object_is_the_first_pages_of_it_or_none() -> None:
    cache = adapter(torn_rate=1)
    lengths: set[int] = set()
    for number in range(100):
        key = bytes((number,)) * 32
        store(cache, key)
        torn = load(cache, key)
        assert cache.lookup([key]) == [torn is not None]
        lengths.add(0 if torn is None else len(torn))
        assert CONTENT.startswith(torn or b"")
    assert lengths == {page * ENVELOPE_BYTES for page in range(PAGES)}
    assert cache.figures()["injected_torn"] == 100


def test_faults_nest_for_rates_that_differ() -> None:
    inner = mapping(error_rate=0.1, verbs=["load"])
    cache = adapter(of=inner, error_rate=0.9, verbs=["store"])
    stores = sum(fails(lambda: store(cache)) for _ in range(200))
    assert 150 < stores < 200
    assert 5 < sum(failures(cache, 200)) < 50


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"of": {"type": "nfs"}}, "unknown type 'nfs': known are .* - at `$.of`"),
        ({"of": {"type": "fs"}}, "type 'fs': Object missing required field `path`.* - at `$.of`"),
        (
            {"of": {"type": "memory", "cascade": "evict", "name": "m"}},
            "name, cascade: stands beside `of`, not in it",
        ),
        ({"verbs": ["save"]}, "Invalid enum value 'save' - at `$.verbs[0]`"),
        ({"error_rate": 1.5}, "Expected `float` <= 1.0 - at `$.error_rate`"),
        ({"delay_s": -1}, "Expected `float` >= 0.0 - at `$.delay_s`"),
    ],
)
def test_what_cannot_be_injected_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadAdapter) as caught:
        AdapterSpec(mapping(**settings))
    pattern = re.escape(f"type 'fault': {sentence}").replace(r"\.\*", ".*")
    assert re.match(pattern, str(caught.value)), str(caught.value)
