"""Whatever a frame holds, its sender gets an answer or loses its connection, and L1 is as whole as
before."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import wire
from lmcache_mp import messages as m
from tests.fuzz.grammar import KINDS, NESTED, Grammar
from tests.fuzz.inside import Inside, inside

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 30_000


@pytest.fixture
def engine(run_directory: Path) -> Iterator[Inside]:
    with inside(run_directory) as engine:
        yield engine


def request(body: bytes, call_id: int = 5) -> bytes:
    return wire.HEADER.pack(wire.MAGIC, wire.PROTOCOL_VERSION, wire.REQUEST, 0, call_id, 0) + body


def lookup_for(hold_s: float) -> bytes:
    return request(wire.encode(["lookup", 1, b"", hold_s]))


LOOKUP = b"\xa6lookup"

BROKEN = {
    "nested a million deep": NESTED,
    "a field nested a million deep": b"\x92" + LOOKUP + NESTED,
    "a map nested 300,000 deep": b"\x92\xa9heartbeat" + b"\x81\xa1a" * 300_000 + b"\xc0",
    "an array of 2**32 - 1": b"\xdd\xff\xff\xff\xff" + LOOKUP,
    "a map of 2**32 - 1": b"\x92\xa9heartbeat\xdf\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\x93" + LOOKUP + b"\x01\xc6\xff\xff\xff\xff",
    "text of 4 GiB": b"\x92\xa5hello\xdb\xff\xff\xff\xff",
    "text that is no UTF-8": b"\x93\xa5hello\xa2\xff\xfe\x01",
    "an integer beyond 64 bits": b"\x93" + LOOKUP + b"\xc7\x09\x00" + bytes(9) + b"\xc4\x00",
    "an extension": b"\x93" + LOOKUP + b"\xd4\x05\x00\xc4\x00",
    "a timestamp": b"\x93" + LOOKUP + b"\xd6\xff\x00\x00\x00\x00\xc4\x00",
    "a million of nil": b"\xdd\x00\x0f\x42\x40" + LOOKUP + b"\xc0" * 1_000_000,
    "cut off": b"\x93" + LOOKUP + b"\x01",
    "two bodies": wire.encode(["status"]) * 2,
    "the unused byte of msgpack": b"\xc1",
    "nothing": b"",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_broken_body_is_answered_with_an_error(engine: Inside, body: bytes) -> None:
    assert engine.take(request(body)) == "bad_message"


@pytest.mark.parametrize("hold_s", [math.nan, math.inf, -math.inf, -1.0, 600.1, 1e308])
def test_a_time_that_is_none_is_answered_with_an_error(engine: Inside, hold_s: float) -> None:
    assert engine.take(lookup_for(600.0)) == ""
    assert engine.take(lookup_for(hold_s)) == "bad_message"


def test_frames_from_the_grammar_are_answered_and_leave_l1_whole(engine: Inside) -> None:
    thought = Grammar(seed=20)
    codes: Counter[str] = Counter()
    for number in range(FRAMES):
        ill = number % 100 == 0
        code = engine.take(thought.ill_framed()[0] if ill else thought.well_framed())
        codes[code] += 1
        if code in ("lease_refused", "draining"):
            engine.say_hello()
        if number % 1000 == 0:
            engine.l1.tick(float(number))
            assert engine.faults() == []
    assert engine.faults() == []
    assert codes[""] > FRAMES / 10
    expected = {"bad_message", "lease_not_found", "bad_lease", "not_registered", "bad_keys"}
    assert expected <= codes.keys()


def test_fuzz_any_bytes_are_answered_or_no_frame(engine: Inside) -> None:
    grammar = st.integers(0, 1 << 32).map(lambda seed: Grammar(seed).request())
    anything = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats()
        | st.text()
        | st.binary(max_size=400),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    )
    names = st.sampled_from([kind.__struct_config__.tag for kind in KINDS])
    bodies = st.tuples(names, st.lists(anything, max_size=8)).map(
        lambda parts: request(wire.encode([parts[0], *parts[1]]))
    )

    @settings(max_examples=300, deadline=None, database=None,
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    @given(data=st.binary(max_size=300) | bodies | grammar, cut=st.integers(0, 600) | st.none())
    def invariant(data: bytes, cut: int | None) -> None:
        if engine.take(data[:cut]) in ("lease_refused", "draining"):
            engine.say_hello()
        engine.say(m.Heartbeat())

    invariant()
    assert engine.faults() == []


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install '.[dev]'"
)
def test_the_coverage_guided_fuzzer_runs_and_finds_nothing(tmp_path: Path) -> None:
    """A short run; `python -m tests.fuzz.fuzz_decoder -runs=1000000` is the long one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_decoder", "-runs=20000", "-seed=1",
         f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 20000 runs" in done.stderr
