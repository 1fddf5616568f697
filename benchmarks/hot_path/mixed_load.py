"""Four blocking clients at once, with a mixed load, beside four that a raw ROUTER echoes to."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.callers import calling, of_crowds
from benchmarks.harness import Figure
from benchmarks.hot_path import mixed_client
from benchmarks.hot_path.effort import Effort
from benchmarks.hot_path.round_trips import scene

CLIENTS = 4


def figures(effort: Effort) -> Iterator[Figure]:
    """Rate and tail, all processes on all CPUs, with a full L1."""
    floor_s: list[float] = []
    subject_s: list[float] = []
    seconds = str(effort.crowd_s)
    with scene(effort) as here:
        here.fill()
        for keys in mixed_client.pool():
            here.speaker.store(keys.buffer)
        address = here.place.run_dir.bus_address
        for crowd in range(effort.crowds):
            floor_s += calling(CLIENTS, "benchmarks.echo", "call", "raw", here.place.raw, seconds)
            subject_s += calling(CLIENTS, mixed_client.__name__, address, str(crowd), seconds)
    name = f"{CLIENTS} clients, mixed load on {mixed_client.CHUNKS} chunks"
    yield from of_crowds(name, effort.crowds * effort.crowd_s, floor_s, subject_s)
