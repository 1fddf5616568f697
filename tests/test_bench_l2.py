"""The benchmark of L2 runs, says what it should, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_l2 import QUESTIONS
from benchmarks.l2.churn import Churn
from lmcache_mp.client import CacheClient
from tests.test_benchmarks import check_is_complete, lines_of, run
from tests.world import NAMESPACE, EngineProcess

FIGURES = {
    "fs-direct": 2,
    "fs-cached": 1,
    "fs-path": 2,
    "redis": 3,
    "s3": 2,
    "beside-busy": 7,
    "beside-hanging": 4,
    "beside-crashing": 4,
    "start": 3,
}
QUICK = ("fs-cached", "fs-path", "redis", "beside-crashing")
"""Those that differ in how they run, of those that are quick."""


def test_every_question_has_a_known_number_of_figures() -> None:
    assert FIGURES.keys() == QUESTIONS.keys()


@pytest.mark.parametrize("question", QUICK)
def test_a_question_about_l2_answers_with_complete_lines(question: str, tmp_path: Path) -> None:
    done = run(
        "bench_l2",
        *("--quick", "--only", question, "--directory", str(tmp_path)),
        *("--json", str(tmp_path / "lines")),
    )
    assert done.returncode == 0, done.stderr
    if "is left out" in done.stderr:
        pytest.skip(done.stderr)
    lines = lines_of(tmp_path / "lines")
    assert len({line.figure.name for line in lines}) == len(lines) == FIGURES[question]
    for line in lines:
        assert line.benchmark == "bench_l2"
        if line.figure.bar.startswith("<= 0 "):
            assert line.reached, done.stderr
        elif line.figure.subject:  # a lag may be none
            check_is_complete(line)
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]


def test_a_busy_client_counts_what_it_was_not_given_rightly(engine: EngineProcess) -> None:
    with CacheClient.connect(engine.address, NAMESPACE, fail_open=False) as cache:
        churn = Churn(cache, seed=1)
        for _ in range(20):
            churn.once()
        assert churn.account.requests == 60
        assert churn.account.hit_chunks > 0
        assert churn.account.failed == churn.account.wrong_chunks == 0
        engine.kill()
        churn.once()
    assert churn.account.failed == 3
    assert "Unavailable" in churn.account.last_failure
