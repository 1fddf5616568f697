"""What do the adapters of L2 cost beside their stores, and what do users notice of a busy L2?

python -m benchmarks.bench_l2 [--only fs-direct,redis] [--directory /mnt/nvme]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Figure, parser, publish
from benchmarks.l2 import beside, fs, redis, s3, start, whole_path
from benchmarks.l2.effort import Effort, quick
from lmcache_mp.l2 import AdapterError

QUESTIONS: dict[str, Callable[[Effort], Iterator[Figure]]] = {
    "fs-direct": fs.direct,
    "fs-cached": fs.cached,
    "fs-path": whole_path.figures,
    "redis": redis.figures,
    "s3": s3.figures,
    "beside-busy": beside.busy,
    "beside-hanging": beside.hanging,
    "beside-crashing": beside.crashing,
    "start": start.figures,
}


def names(text: str) -> list[str]:
    """Questions, separated by commas."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in QUESTIONS]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: expected some of {','.join(QUESTIONS)}"
        )
    return chosen


def lacking(name: str) -> str:
    """Why a question cannot be asked here; empty if it can."""
    if name == "redis" and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        return "neither redis-server nor valkey-server is installed"
    return ""


def main() -> int:
    """The command; its exit code."""
    arguments = parser(__doc__ or "")
    arguments.set_defaults(rounds=Effort().rounds)
    arguments.add_argument(
        "--only", type=names, default=list(QUESTIONS), metavar="NAMES", help=",".join(QUESTIONS)
    )
    arguments.add_argument(
        "--directory",
        type=Path,
        default=Effort().directory,
        help="on the filesystem that fs is measured on; needs 4 GiB there (default: %(default)s)",
    )
    arguments.add_argument(
        "--quick", action="store_true", help="see that everything runs; the figures mean nothing"
    )
    options = arguments.parse_args()
    effort = replace(Effort(), rounds=options.rounds, directory=options.directory)
    if options.quick:
        effort = quick(effort)
    measured: list[Figure] = []
    for name in options.only:
        began_s = time.monotonic()
        why = lacking(name)
        try:
            measured += [] if why else QUESTIONS[name](effort)
        except AdapterError as fault:  # a filesystem without O_DIRECT, for one
            why = str(fault)
        print(f"{name} took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
        if why:
            print(f"{name} is left out: {why}", file=sys.stderr)
    publish("bench_l2", measured, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
