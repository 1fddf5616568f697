"""Every benchmark runs and says what it should. How long anything takes is their business."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.bench_hot_path import QUESTIONS
from benchmarks.flooder import Flood
from benchmarks.harness import Figure, Line, take_turns

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def lines_of(file: Path) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in file.read_bytes().splitlines()]


def check_is_complete(line: Line) -> None:
    figure, here = line.figure, line.circumstances
    assert figure.floor > 0, figure
    assert figure.subject > 0, figure
    assert figure.bar.split()[0] in ("<=", ">=")
    assert line.reached == figure.reached
    for latency in (figure.floor_latency, figure.subject_latency):
        if latency is not None:
            assert latency.count >= 1, figure
            assert None not in (latency.p50_ms, latency.p99_ms, latency.p999_ms)
    assert here.machine.cores >= 1
    assert here.machine.memory_gib > 0
    assert {"lmcache-mp", "python", "pyzmq", "libzmq", "msgspec"} <= here.versions.keys()
    assert here.revision


FIGURES = {
    "hash": 1,
    "retrieve": 4,
    "store": 8,
    "one-more-chunk": 4,
    "mixed": 2,
    "index-size": 1,
    "copy-8mib": 2,
    "copy-1mib": 2,
    "start": 2,
    "memory": 1,
}


def test_every_question_about_the_hot_path_answers_with_complete_lines(tmp_path: Path) -> None:
    done = run("bench_hot_path", "--quick", "--json", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "lines")
    assert FIGURES.keys() == QUESTIONS.keys()
    assert len(lines) == sum(FIGURES.values())
    assert len({line.figure.name for line in lines}) == len(lines)
    for line in lines:
        assert line.benchmark == "bench_hot_path"
        check_is_complete(line)


def test_one_question_can_be_asked_alone(tmp_path: Path) -> None:
    done = run("bench_hot_path", "--quick", "--only", "hash", "--json", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    assert len(lines_of(tmp_path / "lines")) == FIGURES["hash"]
    assert "keys of" in done.stdout


def test_a_question_that_is_none_is_refused_with_those_there_are() -> None:
    done = run("bench_hot_path", "--only", "hash,speed")
    assert done.returncode == 2
    assert "speed: expected some of hash,retrieve" in done.stderr


def test_the_bus_answers_with_complete_lines(tmp_path: Path) -> None:
    done = run("bench_bus", "--rounds", "1", "--json", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "lines")
    assert len(lines) == 5
    for line in lines:
        check_is_complete(line)


def test_a_restart_answers_with_complete_lines(tmp_path: Path) -> None:
    effort = ["--chunks", "0,256,512", "--rounds", "1", "--deaths", "3"]
    done = run("bench_restart", *effort, "--json", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "lines")
    assert len(lines) == 5
    for line in lines:
        check_is_complete(line)


def test_each_flood_answers_with_complete_lines(tmp_path: Path) -> None:
    done = run("bench_flood", "--quick", "--json", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "lines")
    assert len(lines) == 2 * (1 + len(Flood))
    for line in lines:
        check_is_complete(line)


@pytest.mark.parametrize(
    ("bar", "reached"),
    [("<= 2", True), ("<= 1.9", False), (">= 2", True), (">= 2.1", False),
     ("<= 150 MB", True), ("<= 99 MB", False)],
)  # fmt: skip
def test_a_bar_is_about_the_ratio_or_with_a_unit_about_the_subject(bar: str, reached: bool) -> None:
    figure = Figure(name="x", unit="MB", floor=50, subject=100, bar=bar)
    assert figure.reached is reached


def test_floor_and_subject_take_turns_and_the_first_round_does_not_count() -> None:
    said: list[str] = []
    floor_s, subject_s = take_turns(
        lambda: said.append("f"),
        lambda: said.append("s"),
        rounds=2,
        calls=2,
        prepare=lambda: said.append("-"),
    )
    assert "".join(said) == "-ffss-ffss-ffss"
    assert len(floor_s) == len(subject_s) == 4
