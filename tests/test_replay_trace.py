from __future__ import annotations

import functools
import json
import mmap
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import replay_trace
from benchmarks.chunk_bytes import ChunkBytes
from benchmarks.latency import Latency, percentile
from benchmarks.replay_client import Tally
from benchmarks.replay_report import ReplayReport, Workload
from benchmarks.server import own_server, status
from benchmarks.trace import (
    BLOCK_TOKENS,
    BadTrace,
    TraceRequest,
    prompt_tokens,
    read_trace,
    total_blocks,
    unlimited_hit_blocks,
)
from lmcache_mp.client import Namespace, chunk_keys
from lmcache_mp.messages import CacheCounters
from lmcache_mp.units import Size

ROOT = Path(__file__).resolve().parent.parent
REAL_TRACE = ROOT.parent / "shared" / "traces" / "mooncake_conversation_trace.jsonl"
needs_real_trace = pytest.mark.skipif(
    not REAL_TRACE.exists(), reason=f"the trace is not part of the project: no {REAL_TRACE.name}"
)

PROMPTS = [[1, 2, 3], [1, 2, 4, 5], [6], [1, 2, 3, 7], [1, 2, 4, 5], [8, 9]]
"""Blocks of a small trace: 18 in all, of which 2 + 3 + 4 come again."""


# --- percentiles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [(1, 50, 1), (2, 50, 1), (3, 50, 2), (100, 99, 99), (101, 99, 100), (1000, 99.9, 999),
     (1001, 99.9, 1000), (10, 99.9, 10), (10, 0, 1), (10, 100, 10)],
)  # fmt: skip
def test_a_percentile_is_the_value_at_the_nearest_rank(
    count: int, percent: float, rank: int
) -> None:
    assert percentile(range(1, count + 1), percent) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: float
) -> None:
    ascending = sorted(values)
    found = percentile(ascending, percent)
    assert found in values
    assert sum(v <= found for v in values) * 100 >= percent * len(values) - 1e-6
    smaller = [value for value in values if value < found]
    assert not smaller or len(smaller) * 100 < percent * len(values)


def test_no_values_have_no_percentiles() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    assert Latency.of([]) == Latency(count=0)


def test_a_latency_is_in_milliseconds_and_in_any_order() -> None:
    latency = Latency.of([0.003, 0.001, 0.002])
    assert latency == Latency(count=3, p50_ms=2.0, p99_ms=3.0, p999_ms=3.0, max_ms=3.0)


# --- the trace -----------------------------------------------------------------------------------


def requests_of(prompts: Sequence[Sequence[int]]) -> list[TraceRequest]:
    return [TraceRequest(1000 * i, tuple(prompt)) for i, prompt in enumerate(prompts)]


def write_trace(path: Path, prompts: Sequence[Sequence[int]]) -> Path:
    lines = [
        {"timestamp": 10 * i, "input_length": 512 * len(p), "output_length": 1, "hash_ids": p}
        for i, p in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_blocks_of_a_prefix_that_came_before_hit_with_unlimited_room() -> None:
    assert unlimited_hit_blocks(requests_of(PROMPTS)) == 9
    assert total_blocks(requests_of(PROMPTS)) == 18
    assert unlimited_hit_blocks([]) == 0


def test_a_block_does_not_hit_behind_one_that_misses() -> None:
    assert unlimited_hit_blocks(requests_of([[1, 2, 3], [4, 2, 3]])) == 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12))
def test_unlimited_hits_are_the_longest_prefixes_shared_with_any_earlier_prompt(
    prompts: list[list[int]],
) -> None:
    ids: dict[tuple[int, ...], int] = {}  # as in a trace: one id per distinct prefix
    trace = [
        [ids.setdefault(tuple(prompt[: end + 1]), len(ids)) for end in range(len(prompt))]
        for prompt in prompts
    ]
    shared = [
        max((common_prefix(prompt, earlier) for earlier in prompts[:i]), default=0)
        for i, prompt in enumerate(prompts)
    ]
    assert unlimited_hit_blocks(requests_of(trace)) == sum(shared)


def common_prefix(one: list[int], two: list[int]) -> int:
    lengths = range(min(len(one), len(two)), -1, -1)
    return next(length for length in lengths if one[:length] == two[:length])


def test_prompts_share_chunk_keys_exactly_as_far_as_they_share_ids() -> None:
    for chunk_tokens in (512, 128):
        namespace = Namespace(model="m", dtype="u8", chunk_tokens=chunk_tokens, shard_bytes=8)
        one = list(chunk_keys(namespace, prompt_tokens([1, 2, 3])))
        two = list(chunk_keys(namespace, prompt_tokens([1, 2, 4])))
        per_block = BLOCK_TOKENS // chunk_tokens
        assert len(one) == len(two) == 3 * per_block
        assert one[: 2 * per_block] == two[: 2 * per_block]
        assert not set(one[2 * per_block :]) & set(two)


def test_a_trace_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.jsonl", PROMPTS)
    assert [list(request.hash_ids) for request in read_trace(path)] == PROMPTS
    assert [list(request.hash_ids) for request in read_trace(path, 2)] == PROMPTS[:2]
    assert [request.timestamp for request in read_trace(path, 3)] == [0, 10, 20]


def test_a_line_that_is_no_request_is_named(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.jsonl", PROMPTS[:2])
    path.write_text(path.read_text() + '{"timestamp": 1, "hash_ids": ["x"]}\n')
    with pytest.raises(BadTrace, match=r"trace.jsonl, line 3: Expected `int`"):
        read_trace(path)


@needs_real_trace
def test_the_real_traces_best_hit_rate_is_the_published_one() -> None:
    requests = read_trace(REAL_TRACE)
    assert len(requests) == 12_031
    assert round(unlimited_hit_blocks(requests) / total_blocks(requests), 3) == 0.366


# --- bytes of a chunk ----------------------------------------------------------------------------

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))


chunk_bytes_of = functools.cache(ChunkBytes)


def written(key: bytes, chunk_bytes: int = 4096) -> bytearray:
    slot = bytearray(chunk_bytes)
    chunk_bytes_of(chunk_bytes).write(key, memoryview(slot))
    return slot


def wrong_bytes(key: bytes, slot: bytearray) -> int:
    chunk_bytes = chunk_bytes_of(len(slot))
    chunk_bytes.read(memoryview(slot).toreadonly())
    return chunk_bytes.wrong_bytes(key)


@pytest.mark.parametrize("chunk_bytes", [8, 4096, 4099])
def test_what_was_written_for_a_key_is_right_for_it(chunk_bytes: int) -> None:
    assert wrong_bytes(KEY, written(KEY, chunk_bytes)) == 0


@pytest.mark.parametrize("position", [0, 1, 7, 8, 2048, 4095])
def test_one_flipped_bit_is_one_wrong_byte(position: int) -> None:
    slot = written(KEY)
    slot[position] ^= 1
    assert wrong_bytes(KEY, slot) == 1


def test_another_chunk_an_empty_one_and_a_shifted_one_are_wrong_nearly_everywhere() -> None:
    slot = written(KEY)
    for other in (written(OTHER_KEY), bytearray(4096), slot[8:] + slot[:8]):
        assert wrong_bytes(KEY, other) > 4000


def test_the_bytes_of_a_chunk_do_not_depend_on_who_makes_them() -> None:
    slot = bytearray(4096)
    ChunkBytes(4096).write(KEY, memoryview(slot))
    assert slot == written(KEY)


def test_half_of_another_chunk_is_wrong_in_that_half() -> None:
    torn = written(KEY)
    torn[2048:] = written(OTHER_KEY)[2048:]
    assert 2000 < wrong_bytes(KEY, torn) <= 2048


# --- the report ----------------------------------------------------------------------------------


def test_a_report_adds_the_clients_up() -> None:
    one = Tally(requests=2, chunks=10, hit_chunks=4, stored_chunks=6, retrieve_s=[0.001, 0.003])
    one.reading_s, one.store_s = 0.004, [0.006]
    two = Tally(requests=1, chunks=10, wrong_bytes=5, wrong_chunks=1, retrieve_s=[0.002])
    two.failures, two.last_failure, two.no_room_chunks = {"store": 1}, "gone", 10
    workload = Workload(
        trace="t", clients=2, speed=None, chunk_tokens=512, chunk_bytes=1_000_000,
        l1_bytes=1 << 30, unlimited_hit_rate=0.5,
    )  # fmt: skip
    before = CacheCounters(**dict.fromkeys(CacheCounters.__struct_fields__, 100))
    after = CacheCounters(**dict.fromkeys(CacheCounters.__struct_fields__, 103))
    report = ReplayReport.of(workload, 2.0, [one, two], before, after)
    assert (report.requests, report.chunks, report.hit_rate) == (3, 20, 0.2)
    assert (report.verified_bytes, report.stored_bytes) == (4_000_000, 6_000_000)
    assert (report.wrong_bytes, report.wrong_chunks) == (5, 1)
    assert (report.retrieve_gb_per_s, report.store_gb_per_s) == (1.0, 1.0)
    assert report.total_gb_per_s == 0.005
    assert report.lookup_retrieve.p50_ms == 2.0
    assert report.store.count == 1
    assert (report.evicted_chunks, report.no_room_chunks) == (3, 10)
    assert (report.failures, report.last_failure) == ({"store": 1}, "gone")
    assert json.loads(report.json_line())["lookup_retrieve"]["count"] == 3


# --- whole replays -------------------------------------------------------------------------------

SMALL = ["--chunk-bytes", "16KiB"]


def last_line(output: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def test_one_client_with_room_for_everything_hits_what_can_be_hit(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", PROMPTS)
    command = [sys.executable, "-m", "benchmarks.replay_trace", str(trace), "--clients", "1"]
    result = subprocess.run(
        [*command, *SMALL, "--l1-size", "16MiB"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = last_line(result.stdout)
    assert report["hit_rate"] == report["workload"]["unlimited_hit_rate"] == 0.5
    assert report["verified_bytes"] == report["stored_bytes"] == 9 * 16384
    assert report["wrong_bytes"] == report["evicted_chunks"] == 0
    assert report["failures"] == {}
    assert report["lookup_retrieve"]["count"] == 6
    assert report["store"]["count"] == 5  # one prompt was there as a whole
    assert "wrong bytes" in result.stdout


def test_a_wrong_byte_in_l1_is_found_and_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", PROMPTS)
    lines = tmp_path / "reports.jsonl"
    with own_server(Size("16MiB")) as run_dir:
        there = ["--run-dir", str(run_dir.path), "--run-id", "again", "--json", str(lines)]
        there += [*SMALL, "--chunk-tokens", "256"]
        assert replay_trace.main([str(trace), *there]) == 0
        assert replay_trace.main([str(trace), *there]) == 0
        assert last_line(capsys.readouterr().out)["hit_rate"] == 1.0
        namespace = Namespace(
            model="replay", revision="again", dtype="uint8", chunk_tokens=256, shard_bytes=16384
        )
        only_once = chunk_keys(namespace, prompt_tokens([6]))[1]
        flip_a_bit(status(run_dir).l1.path, written(only_once, 16384))
        assert replay_trace.main([str(trace), *there]) == 1
        report = last_line(capsys.readouterr().out)
        assert (report["wrong_bytes"], report["wrong_chunks"]) == (1, 1)
    assert [json.loads(line)["wrong_bytes"] for line in lines.read_text().splitlines()] == [0, 0, 1]


def flip_a_bit(segment: str, chunk: bytearray) -> None:
    with open(segment, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        start = memory.find(chunk)
        assert start >= 0, "the chunk is not in L1"
        memory[start + 5000] ^= 16


@pytest.mark.parametrize("speed", ["50", "0.5"])
def test_a_replay_in_trace_time_takes_as_long_as_the_trace_or_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], speed: str
) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", PROMPTS)  # a request every 10 ms
    arguments = [str(trace), *SMALL, "--l1-size", "16MiB", "--speed", speed]
    assert replay_trace.main(arguments) == 0
    report = last_line(capsys.readouterr().out)
    assert report["seconds"] >= round(0.05 / float(speed), 3)
    assert report["workload"]["speed"] == float(speed)


@needs_real_trace
def test_the_real_traces_beginning_comes_back_right_also_when_l1_is_too_small(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--requests", "200", "--clients", "2", "--l1-size", "32MiB", *SMALL]
    assert replay_trace.main([str(REAL_TRACE), *arguments]) == 0
    report = last_line(capsys.readouterr().out)
    assert report["requests"] == 200
    assert report["workload"]["unlimited_hit_rate"] == 0.0582
    assert report["verified_bytes"] > 0
    assert report["wrong_bytes"] == 0
    assert report["evicted_chunks"] > 0
    assert report["failures"] == {}


def test_a_replay_that_cannot_be_done_is_exit_code_2_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay_trace.main([str(tmp_path / "none.jsonl")]) == 2
    assert "No such file" in capsys.readouterr().err
    empty = write_trace(tmp_path / "empty.jsonl", [])
    assert replay_trace.main([str(empty)]) == 2
    assert "empty.jsonl has no prompts" in capsys.readouterr().err
    trace = write_trace(tmp_path / "trace.jsonl", PROMPTS)
    assert replay_trace.main([str(trace), "--run-dir", "/nowhere"]) == 2
    assert "no server at ipc:///nowhere/bus.sock" in capsys.readouterr().err


def test_a_client_that_is_refused_ends_the_replay_with_the_servers_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", PROMPTS)
    arguments = [str(trace), "--chunk-bytes", "64MiB", "--l1-size", "16MiB"]
    assert replay_trace.main(arguments) == 2
    said = capfd.readouterr().err
    assert "67108864" in said
    assert "ended before it was done" in said


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--chunk-tokens", "100"], "100 does not divide 512"),
        (["--chunk-bytes", "1GB"], "say GiB"),
        (["--chunk-bytes", "4"], "expected 8 bytes to 1 GiB"),
        (["--clients", "0"], "0 is less than 1"),
        (["--speed", "-1"], "-1 is not more than 0"),
        (["--run-dir", "x", "--l1-size", "1GiB"], "not of one that runs"),
    ],
)
def test_a_bad_flag_is_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        replay_trace.main(["trace.jsonl", *flags])
    assert refused.value.code == 2
    assert sentence in capsys.readouterr().err
