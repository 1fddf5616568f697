"""What do the verbs, the copies and the processes of a server cost, each beside its floor?

python -m benchmarks.bench_hot_path [--only retrieve,store]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from benchmarks.harness import Figure, parser, publish
from benchmarks.hot_path import copies, hashes, index_size, mixed_load, processes, round_trips
from benchmarks.hot_path.effort import Effort, quick

MIB = 1 << 20

QUESTIONS: dict[str, Callable[[Effort], Iterator[Figure]]] = {
    "hash": hashes.figures,
    "retrieve": round_trips.retrieve,
    "store": round_trips.store,
    "one-more-chunk": round_trips.one_more_chunk,
    "mixed": mixed_load.figures,
    "index-size": index_size.figures,
    "copy-8mib": partial(copies.figures, chunk_bytes=8 * MIB, bar=">= 0.9"),
    "copy-1mib": partial(copies.figures, chunk_bytes=MIB, bar=">= 0.75"),
    "start": processes.start,
    "memory": processes.memory,
}


def names(text: str) -> list[str]:
    """Questions, separated by commas."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in QUESTIONS]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: expected some of {','.join(QUESTIONS)}"
        )
    return chosen


def main() -> int:
    """The command; its exit code."""
    arguments = parser(__doc__ or "")
    arguments.add_argument(
        "--only", type=names, default=list(QUESTIONS), metavar="NAMES", help=",".join(QUESTIONS)
    )
    arguments.add_argument(
        "--quick", action="store_true", help="see that everything runs; the figures mean nothing"
    )
    options = arguments.parse_args()
    effort = replace(Effort(), rounds=options.rounds)
    if options.quick:
        effort = quick(effort)
    measured: list[Figure] = []
    for name in options.only:
        began_s = time.monotonic()
        measured += QUESTIONS[name](effort)
        print(f"{name} took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    publish("bench_hot_path", measured, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
