"""The chaos run: its plan, its judgement, and a short run of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks.chaos_account import Account
from benchmarks.chaos_log import Committed, Deleted, Deleting, Missed, Silence
from benchmarks.chaos_plan import (
    AGAIN_S,
    CALM_S,
    DEATHS_APART_S,
    LONGEST_CLIENT_STOP_S,
    LONGEST_ENGINE_STOP_S,
    Kind,
    plan,
)
from benchmarks.chaos_promises import Intervals, Promises

A, B = b"a" * 32, b"b" * 32
WHOLE, RANKS = 0, 1


@pytest.fixture
def promises() -> Promises:
    """Of a namespace with one shard, and one with two."""
    return Promises([1, 2])


def missed(key: bytes, at_s: float, place: int = WHOLE, pinned_s: float | None = None) -> Missed:
    return Missed(place, key, at_s, at_s + 0.5, pinned_s)


# --- the plan ---


def test_a_seed_always_makes_the_same_plan() -> None:
    assert plan(7, 60, 3) == plan(7, 60, 3)
    assert plan(7, 60, 3) != plan(8, 60, 3)


@pytest.mark.parametrize("seed", range(20))
def test_events_are_in_order_and_leave_calm_at_both_ends(seed: int) -> None:
    moments = [event.at_s for event in plan(seed, 60, 3)]
    assert moments == sorted(moments)
    assert moments[0] >= CALM_S
    assert moments[-1] < 60 - CALM_S


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_happens_within_a_minute(seed: int) -> None:
    happening = {event.kind for event in plan(seed, 60, 3)}
    assert happening == set(Kind) - {Kind.CLIENT_DIES_WAITING}  # only before L1 has memory


@pytest.mark.parametrize("seed", range(20))
def test_an_engine_dies_again_at_once_or_when_it_was_well_in_between(seed: int) -> None:
    deaths = [event.at_s for event in plan(seed, 600, 3) if event.kind == Kind.ENGINE_KILLED]
    gaps = [later - earlier for earlier, later in itertools.pairwise(deaths)]
    again = [gap <= AGAIN_S[1] for gap in gaps]
    assert all(
        soon or gap >= DEATHS_APART_S[0] - 1e-6 for gap, soon in zip(gaps, again, strict=True)
    )
    assert not any(one and two for one, two in itertools.pairwise(again))
    assert len(deaths) >= 40


def test_what_lasts_is_bounded_and_befalls_all_clients() -> None:
    events = plan(3, 600, 4)
    for kind, longest_s in (
        (Kind.ENGINE_STOPPED, LONGEST_ENGINE_STOP_S),
        (Kind.CLIENT_STOPPED, LONGEST_CLIENT_STOP_S),
    ):
        assert all(0 < event.for_s <= longest_s for event in events if event.kind == kind)
    assert Counter(event.client for event in events).keys() == {0, 1, 2, 3}


# --- what is owed ---


def test_a_chunk_whose_commit_was_answered_is_owed(promises: Promises) -> None:
    promises.committed(A + B, 0, 1.0, 2.0)
    promises.missed(missed(B, 3.0))
    (lost,) = promises.lost(evicts=False)
    assert (lost.key, lost.promised_s, lost.by) == (B.hex()[:16], 1.0, "commit")


def test_a_commit_that_is_answered_after_the_question_promises_nothing(promises: Promises) -> None:
    promises.committed(A, 0, 1.0, 3.1)
    promises.missed(missed(A, 3.0))
    assert promises.lost(evicts=False) == []


@pytest.mark.parametrize("forgotten", [(0.0, 1.0), (1.5, 1.6), (3.5, 9.0)])
def test_what_may_have_been_forgotten_in_between_is_not_owed(
    promises: Promises, forgotten: tuple[float, float]
) -> None:
    promises.committed(A, 0, 1.0, 2.0)
    promises.missed(missed(A, 3.0))
    promises.deleted(A, *forgotten)
    assert promises.lost(evicts=False) == []


@pytest.mark.parametrize("forgotten", [(0.0, 0.9), (3.6, 9.0)])
def test_what_was_forgotten_before_or_after_is(
    promises: Promises, forgotten: tuple[float, float]
) -> None:
    promises.committed(A, 0, 1.0, 2.0)
    promises.missed(missed(A, 3.0))
    promises.cleared(WHOLE, *forgotten)
    promises.cleared(RANKS, 2.0, 3.0)
    promises.deleted(B, 2.0, 3.0)
    assert len(promises.lost(evicts=False)) == 1


def test_a_chunk_is_owed_once_all_its_ranks_were_answered(promises: Promises) -> None:
    promises.committed(A, 0, 1.0, 2.0)
    promises.missed(missed(A, 3.0, RANKS))
    assert promises.lost(evicts=False) == []
    promises.committed(A, 1, 2.5, 2.8)
    (lost,) = promises.lost(evicts=False)
    assert lost.promised_s == 1.0


def test_where_l1_evicts_only_a_pin_promises(promises: Promises) -> None:
    promises.committed(A, 0, 1.0, 2.0)
    promises.missed(missed(A, 3.0))
    promises.missed(missed(A, 5.0, pinned_s=4.0))
    (lost,) = promises.lost(evicts=True)
    assert (lost.by, lost.promised_s) == ("pin", 4.0)


def test_intervals_that_end_late_are_not_hidden_by_later_ones() -> None:
    intervals = Intervals([(0.0, 10.0), (1.0, 2.0), (5.0, 6.0)])
    assert intervals.touch(9.0, 9.5)
    assert not intervals.touch(10.5, 11.0)
    assert not Intervals([]).touch(0.0, 1.0)


# --- what witnesses say ---


def test_a_delete_that_nobody_saw_answered_may_still_happen_for_a_while() -> None:
    account = Account()
    killed = account.witness("killed")
    account.take(killed, Committed(0, A, 1.0, 2.0))
    account.take(killed, Deleting(A, 2.5))
    account.gone(killed, 2.6)
    account.promises.missed(missed(A, 3.0))
    assert account.promises.lost(evicts=False) == []


def test_a_delete_that_was_answered_is_over() -> None:
    account = Account()
    witness = account.witness("w")
    account.take(witness, Deleting(A, 0.5))
    account.take(witness, Deleted(0.6, False))
    account.take(witness, Committed(0, A, 1.0, 2.0))
    account.take(witness, missed(A, 3.0))
    assert len(account.promises.lost(evicts=False)) == 1


def test_silence_does_not_count_while_the_client_itself_is_stopped() -> None:
    witness = Account().witness("w")
    witness.silences.append(Silence(1.0, 5.0))
    witness.stops.append((2.0, 4.5))
    assert witness.longest_silence_s() == pytest.approx(1.5)


# --- a run ---


def test_a_short_run_keeps_every_promise() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--minutes", "0.25", "--seed", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert report["engine_deaths"] >= 1
    assert report["client_deaths"] >= 3
    assert report["requests"] > 100
    assert report["verified_bytes"] > 0
