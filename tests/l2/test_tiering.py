"""L1 over adapters, each in its own process: what leaves L1 comes back, whole or not at all."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import bus
from lmcache_mp import messages as m
from lmcache_mp.errors import CannotAttach, NoSuchAdapter
from lmcache_mp.tiering.messages import L2Attach, L2Clear, L2Detach
from tests.l2.world import CHUNKS, Node, namespace, node, prompt, retrieve, store
from tests.waiting import wait_until
from tests.world import NAMESPACE, EngineProcess

MEMORY = {"type": "memory"}
Start = Callable[..., EngineProcess]


def leave_l1(running: Node) -> None:
    """Everything leaves L1; L2 keeps it."""
    running.engine.call(m.Clear())


def attach(running: Node, adapter: dict[str, Any]) -> bus.BusError | None:
    """Attach an adapter, once somebody starts its worker; why it is not attached, if it is not."""
    try:
        with bus.Client(running.engine.address) as link:
            link.call(L2Attach(spec=json.dumps(adapter)), timeout_s=20)
    except bus.BusError as fault:
        return fault
    return None


def test_what_left_l1_is_brought_back_byte_for_byte(start_engine: Start) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        assert store(client, keys) == CHUNKS
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        assert retrieve(client, keys, wait=False) == 0
        assert retrieve(client, keys) == CHUNKS
        assert running.engine.status().l1.ready_chunks == CHUNKS
        assert retrieve(client, keys, wait=False) == CHUNKS


def test_a_lookup_says_what_each_tier_has(start_engine: Start) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        assert retrieve(client, keys.first(3)) == 3
        reply = client.lookup(keys, wait=True)
        assert (reply.l1_chunks, reply.l2_chunks, reply.l2_pending_chunks) == (3, CHUNKS - 3, 0)
        assert reply.adapters == {"memory": CHUNKS - 3}


def test_a_lookup_that_does_not_wait_says_what_is_pending_and_the_next_one_knows(
    start_engine: Start,
) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        running.engine.kill()  # its successor remembers nothing of L2
        running.engine.start()
        wait_until(lambda: running.l2("memory").state == "open")
        leave_l1(running)
        longer = prompt(client, 1, chunks=CHUNKS + 2)
        first = client.lookup(longer)
        assert first.hit_chunks + first.l2_pending_chunks == CHUNKS + 2
        wait_until(lambda: client.lookup(longer).l2_chunks == CHUNKS)


def test_several_shards_come_back_as_one_chunk(start_engine: Start) -> None:
    two = namespace(model="two ranks", num_shards=2)
    with (
        node(start_engine, MEMORY) as running,
        running.engine.client(two, shard=0) as first,
        running.engine.client(two, shard=1) as second,
    ):
        keys = prompt(first, 1)
        store(first, keys)
        store(second, keys)
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        assert retrieve(first, keys) == CHUNKS
        assert retrieve(second, keys, wait=False) == CHUNKS


def test_callers_of_one_prompt_share_its_loads(start_engine: Start) -> None:
    slow = {"type": "fault", "of": MEMORY, "name": "slow", "verbs": ["load"], "delay_s": 0.3}
    with node(start_engine, slow) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "slow")
        leave_l1(running)
        counts: list[int] = []
        callers = [
            threading.Thread(target=lambda: counts.append(retrieve(client, keys))) for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert counts == [CHUNKS] * 4
        assert running.l2("slow").counters.loaded_chunks == CHUNKS


def test_a_caller_whose_time_is_up_gets_what_is_there_and_the_load_goes_on(
    start_engine: Start,
) -> None:
    slow = {"type": "fault", "of": MEMORY, "name": "slow", "verbs": ["load"], "delay_s": 1.0}
    with node(start_engine, slow) as running, running.engine.client() as client:
        keys = prompt(client, 1, chunks=2)
        store(client, keys)
        running.wait_cascaded(2, "slow")
        leave_l1(running)
        with running.engine.client(timeout_s=0.5) as hasty:
            assert retrieve(hasty, keys) == 0
        wait_until(lambda: retrieve(client, keys, wait=False) == 2)


def test_prefetch_warms_a_prompt(start_engine: Start) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        assert client.prefetch(keys) == 0
        wait_until(lambda: client.lookup(keys).l1_chunks == CHUNKS)
        assert client.prefetch(keys) == CHUNKS


def test_a_chunk_that_is_deleted_is_deleted_everywhere(start_engine: Start) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        assert client.delete(keys) == CHUNKS
        assert retrieve(client, keys) == 0


def test_adapters_are_asked_in_their_order_and_the_first_learns_what_the_second_had(
    start_engine: Start,
) -> None:
    near = {**MEMORY, "name": "near"}
    far = {**MEMORY, "name": "far"}
    with node(start_engine, near, far) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "near")
        running.wait_cascaded(CHUNKS, "far")
        leave_l1(running)
        running.end_worker("near", signal.SIGKILL)  # and its memory with it
        wait_until(lambda: running.l2("near").state == "starting")
        running.start_worker("near")
        assert retrieve(client, keys) == CHUNKS
        running.wait_cascaded(2 * CHUNKS, "near")
        leave_l1(running)
        running.end_worker("far")
        assert retrieve(client, keys) == CHUNKS


def test_what_one_adapter_fails_to_give_another_is_asked_for(start_engine: Start) -> None:
    broken = {
        "type": "fault", "of": MEMORY, "name": "broken", "verbs": ["load"], "error_rate": 1.0,
        "retries": 0,
    }  # fmt: skip
    with node(start_engine, broken, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1, chunks=3)
        store(client, keys)
        running.wait_cascaded(3, "broken")
        running.wait_cascaded(3)
        leave_l1(running)
        assert retrieve(client, keys) == 3


def test_a_prompt_that_is_larger_than_the_queue_is_brought_back_whole(start_engine: Start) -> None:
    small = {**MEMORY, "queue": 4 * NAMESPACE.chunk_bytes}
    with node(start_engine, small) as running, running.engine.client() as client:
        keys = prompt(client, 1, chunks=20)
        for chunks in range(2, 21, 2):
            store(client, keys.first(chunks))
            running.wait_cascaded(chunks)
        leave_l1(running)
        assert retrieve(client, keys) == 20


def test_what_does_not_fit_into_the_queue_at_once_is_offered_bit_by_bit(
    start_engine: Start,
) -> None:
    small = {**MEMORY, "queue": 4 * NAMESPACE.chunk_bytes}
    with node(start_engine) as running, running.engine.client() as client:
        keys = prompt(client, 1, chunks=40)
        store(client, keys)
        attached = threading.Thread(target=lambda: attach(running, small))
        attached.start()
        wait_until(lambda: bool(running.engine.status().l2))
        running.start_worker("memory")
        attached.join()
        running.wait_cascaded(40)
        assert running.l2("memory").counters.cascade_dropped_chunks == 0


def test_a_detached_adapter_that_hangs_leaves_nobody_waiting(start_engine: Start) -> None:
    hanging = {
        "type": "fault", "of": MEMORY, "name": "hanging", "verbs": ["load"], "hang_rate": 1.0,
        "hang_until": "never",
    }  # fmt: skip
    with node(start_engine, hanging, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "hanging")
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        counts: list[int] = []
        caller = threading.Thread(target=lambda: counts.append(retrieve(client, keys)))
        caller.start()
        wait_until(lambda: running.engine.status().l1.incomplete_chunks > 0)
        running.engine.call(L2Detach(name="hanging", drain_s=0))
        running.end_worker("hanging", signal.SIGKILL)  # as the supervisor does
        caller.join()
        wait_until(lambda: retrieve(client, keys) == CHUNKS)


def test_what_was_in_l1_before_an_adapter_is_cascaded_to_it(start_engine: Start) -> None:
    with node(start_engine) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        attached = threading.Thread(target=lambda: attach(running, MEMORY))
        attached.start()
        wait_until(lambda: bool(running.engine.status().l2))
        running.start_worker("memory")
        attached.join()
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        assert retrieve(client, keys) == CHUNKS


def test_what_an_earlier_engine_left_is_cascaded_too(start_engine: Start) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        running.end_worker("memory", signal.SIGKILL)
        running.engine.kill()
        running.engine.start()
        running.start_worker("memory")
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        assert retrieve(client, keys) == CHUNKS


def test_an_adapter_that_takes_what_is_evicted_gets_the_coldest_ahead_of_it(
    start_engine: Start,
) -> None:
    cold = {**MEMORY, "cascade": "evict"}
    with node(start_engine, cold) as running, running.engine.client() as client:
        first = prompt(client, 0, chunks=16)
        store(client, first)
        for number in range(1, 14):  # 14 of L1's 16 MiB
            store(client, prompt(client, number, chunks=16))
        wait_until(lambda: running.l2("memory").counters.cascaded_chunks >= 16)
        for number in range(14, 17):
            store(client, prompt(client, number, chunks=16))
        assert client.lookup(first).l1_chunks == 0
        assert retrieve(client, first) == 16


def test_a_stop_waits_for_what_is_to_be_stored(start_engine: Start, run_directory: Any) -> None:
    slow = {
        "type": "fault",
        "name": "slow",
        "verbs": ["store"],
        "delay_s": 0.1,
        "of": {"type": "fs", "path": str(run_directory)},
    }
    with node(start_engine, slow) as running, running.engine.client() as client:
        keys = prompt(client, 1, chunks=16)
        store(client, keys)
        assert running.engine.stop() == 0
        running.end_worker("slow")
        running.engine.start("--cold")
        running.start_worker("slow")
        assert retrieve(client, keys) == 16


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_costs_a_tier_for_a_while_and_nothing_else(
    start_engine: Start, run_directory: Any, number: signal.Signals
) -> None:
    slow = {
        "type": "fault",
        "name": "slow",
        "verbs": ["load"],
        "delay_s": 5.0,
        "of": {"type": "fs", "path": str(run_directory)},
    }
    with node(start_engine, slow) as running, running.engine.client() as client:
        keys, other = prompt(client, 1), prompt(client, 2)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "slow")
        leave_l1(running)
        store(client, other)
        counts: list[int] = []
        caller = threading.Thread(target=lambda: counts.append(retrieve(client, keys)))
        caller.start()
        wait_until(lambda: running.engine.status().l1.incomplete_chunks > 0)
        running.end_worker("slow", number)
        caller.join()
        assert counts == [0]
        assert retrieve(client, other) == CHUNKS
        wait_until(lambda: running.engine.status().l1.incomplete_chunks == 0)
        running.start_worker("slow")
        assert store(client, keys) == CHUNKS


def test_a_worker_goes_on_with_the_engines_successor(start_engine: Start) -> None:
    slow = {"type": "fault", "of": MEMORY, "name": "slow", "verbs": ["load"], "delay_s": 0.5}
    with node(start_engine, slow) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "slow")
        leave_l1(running)
        client.prefetch(keys)
        wait_until(lambda: running.engine.status().l1.incomplete_chunks > 0)
        running.engine.kill()
        running.engine.start()
        wait_until(lambda: running.l2("slow").state == "open")
        # Until those loads are in, they look like a client's stores, which nobody waits for.
        wait_until(lambda: retrieve(client, keys) == CHUNKS)


def test_an_adapter_that_hangs_is_ended_and_its_callers_are_answered(start_engine: Start) -> None:
    hanging = {
        "type": "fault", "of": MEMORY, "name": "hanging", "verbs": ["load"], "hang_rate": 1.0,
        "deadline_s": 1.0,
    }  # fmt: skip
    with node(start_engine, hanging) as running, running.engine.client(timeout_s=1.0) as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "hanging")
        leave_l1(running)
        assert retrieve(client, keys) == 0
        assert running.workers["hanging"].wait(timeout=20) == 3
        wait_until(lambda: running.engine.status().l1.incomplete_chunks == 0)


def test_an_adapter_that_hangs_as_it_opens_is_ended(start_engine: Start) -> None:
    hanging = {
        "type": "fault", "of": MEMORY, "name": "hanging", "verbs": ["open"], "hang_rate": 1.0,
        "hang_until": "never", "deadline_s": 0.5,
    }  # fmt: skip
    with node(start_engine) as running:
        attaching = threading.Thread(target=lambda: attach(running, hanging), daemon=True)
        attaching.start()
        wait_until(lambda: bool(running.engine.status().l2))
        worker = running.start_worker("hanging", opens=False)
        assert worker.wait(timeout=20) == 3
        assert running.l2("hanging").state == "starting"
        running.engine.kill()  # else the operator would wait on
        attaching.join()
        running.engine.start()


def test_a_changed_object_is_a_miss_is_counted_and_is_removed(start_engine: Start) -> None:
    rotten = {"type": "fault", "of": MEMORY, "name": "rotten", "corrupt_rate": 1.0}
    with node(start_engine, rotten) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS, "rotten")
        leave_l1(running)
        assert retrieve(client, keys) < CHUNKS  # a bit of the envelope's padding harms nothing
        wait_until(lambda: running.l2("rotten").figures["rejected_objects"] >= 1)
        assert running.l2("rotten").counters.load_absent_chunks >= 1


def test_an_adapter_that_cannot_be_opened_is_not_attached(start_engine: Start) -> None:
    with node(start_engine) as running:
        refused: list[bus.BusError | None] = []
        spec = {"type": "fs", "path": "/proc/nothing"}
        attaching = threading.Thread(target=lambda: refused.append(attach(running, spec)))
        attaching.start()
        wait_until(lambda: bool(running.engine.status().l2))
        worker = running.start_worker("fs", opens=False)
        attaching.join()
        assert isinstance(refused[0], CannotAttach)
        assert "/proc/nothing" in str(refused[0])
        assert worker.wait(timeout=10) == 0  # it is not wanted
        assert running.engine.status().l2 == []


def test_adapters_are_cleared_and_detached(start_engine: Start) -> None:
    with node(start_engine, MEMORY) as running, running.engine.client() as client:
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        running.engine.call(L2Clear(name="memory"))
        leave_l1(running)
        assert retrieve(client, keys) == 0
        store(client, keys)
        running.engine.call(L2Detach(name="memory"))
        assert running.engine.status().l2 == []
        assert running.workers["memory"].wait(timeout=10) == 0
        with pytest.raises(NoSuchAdapter, match="attached are none"):
            running.engine.call(L2Clear(name="memory"))


def test_a_chunk_that_somebody_is_storing_holds_up_no_other_load(start_engine: Start) -> None:
    with (
        node(start_engine, MEMORY) as running,
        running.engine.client() as client,
        running.engine.client() as other,
    ):
        keys = prompt(client, 1)
        store(client, keys)
        running.wait_cascaded(CHUNKS)
        leave_l1(running)
        writing = other.begin_store(keys.first(1))
        for _ in range(3):
            assert retrieve(client, keys) == 0
        writing.abort()
        wait_until(lambda: retrieve(client, keys) == CHUNKS)
