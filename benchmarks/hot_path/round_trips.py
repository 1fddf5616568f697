"""Look up, hold, reserve, publish: round trips without copying, beside a raw echo.

Each is measured twice: the bare messages, and through `CacheClient` as a caller has it, with a view
of every slot. The L1 they meet is full, so that each new chunk evicts one, unless they say that it
has free room: then what was stored is deleted, unmeasured, before each round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.echo import raw_call
from benchmarks.harness import Figure, of_latencies, take_turns
from benchmarks.hot_path.effort import Effort
from benchmarks.hot_path.place import Place, connected, place
from benchmarks.hot_path.prompts import CHUNKS, NAMESPACE, FreshPrompts, prompt
from benchmarks.hot_path.speaker import Speaker, speaking
from lmcache_mp.client import CacheClient, ChunkKeys
from lmcache_mp.units import Size

CACHED = prompt(0)
RETRIEVE_BAR, STORE_BAR = "<= 4", "<= 6"


@dataclass(frozen=True, slots=True)
class Scene:
    """The two servers, and two clients of the one that is measured."""

    place: Place
    cache: CacheClient
    speaker: Speaker
    effort: Effort

    def figures(
        self,
        name: str,
        bar: str,
        subjects: dict[str, Callable[[], None]],
        prepare: Callable[[], None] = lambda: None,
    ) -> Iterator[Figure]:
        """Every way to do it, on one core and on two, each in turn with the echo."""
        effort = self.effort
        for where in self.place.cores():
            for way, subject in subjects.items():
                with raw_call(self.place.raw) as echo:
                    floor_s, subject_s = take_turns(
                        echo, subject, rounds=effort.rounds, calls=effort.calls, prepare=prepare
                    )
                yield of_latencies(f"{name}, {way}, {where}", bar, floor_s, subject_s)

    def fill(self) -> None:
        """Leave no free slot."""
        for number in range(1, 2 + self.effort.l1_bytes // NAMESPACE.chunk_bytes // CHUNKS):
            self.speaker.store(prompt(number).buffer)


@contextlib.contextmanager
def scene(effort: Effort) -> Iterator[Scene]:
    """With an empty L1."""
    with (
        place(Size(effort.l1_bytes)) as where,
        connected(where.run_dir, NAMESPACE) as cache,
        speaking(where.run_dir, NAMESPACE) as speaker,
    ):
        yield Scene(where, cache, speaker, effort)


def retrieve(effort: Effort) -> Iterator[Figure]:
    """A prompt that is all there: prepare_retrieve and release."""
    with scene(effort) as here:
        here.fill()
        here.speaker.store(CACHED.buffer)

        def messages() -> None:
            assert here.speaker.retrieve(CACHED.buffer) == CHUNKS

        def client() -> None:
            with here.cache.retrieve(CACHED) as hit:
                assert sum(1 for _ in hit.slots()) == CHUNKS

        ways = {"messages": messages, "client": client}
        yield from here.figures(f"retrieve {CHUNKS} chunks", RETRIEVE_BAR, ways)


def store(effort: Effort) -> Iterator[Figure]:
    """A prompt of which nothing is there: prepare and commit, in a full L1 and in a free one."""
    fresh = FreshPrompts()
    with scene(effort) as here:
        ways = _stores(here, fresh, CHUNKS)

        def free_room() -> None:
            for keys in fresh.used():
                here.cache.delete(keys)
            fresh.make(effort.calls)

        yield from here.figures(
            f"store {CHUNKS} chunks, free room", STORE_BAR, ways, prepare=free_room
        )
        here.fill()
        yield from here.figures(
            f"store {CHUNKS} chunks, L1 full",
            STORE_BAR,
            ways,
            prepare=lambda: fresh.make(effort.calls),
        )


def one_more_chunk(effort: Effort) -> Iterator[Figure]:
    """A prompt whose last chunk only is missing."""
    fresh = FreshPrompts()
    head = CACHED.first(CHUNKS - 1).buffer
    with scene(effort) as here:
        here.fill()
        here.speaker.store(head)
        yield from here.figures(
            f"store 1 more chunk of {CHUNKS}",
            STORE_BAR,
            _stores(here, fresh, 1),
            prepare=lambda: fresh.make(effort.calls, 1, head),
        )


def _stores(here: Scene, fresh: FreshPrompts, chunks: int) -> dict[str, Callable[[], None]]:
    def messages() -> None:
        assert here.speaker.store(fresh.take().buffer) == chunks

    def client() -> None:
        keys: ChunkKeys = fresh.take()
        with here.cache.store(keys) as batch:
            for _ in batch.slots():
                pass
        assert batch.committed_chunks == chunks

    return {"messages": messages, "client": client}
