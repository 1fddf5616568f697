"""A client process of a chaos run: works until it is told to end, or how to die.

    python -m benchmarks.chaos_client ADDRESS WHO SEED

Orders come as lines on stdin, lines of `chaos_log` go to stdout.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from typing import NoReturn

from benchmarks.chaos_log import Dying, Started, say_on
from benchmarks.chaos_plan import Kind
from benchmarks.chaos_prompts import NAMESPACES, PROMPTS, of_shard, private_keys, prompt_keys
from benchmarks.chaos_work import POISON, Rank, Work
from lmcache_mp.client import ChunkKeys, StoreBatch

END = "end"
ORPHAN_S = 3.0
"""How long a forked child outlives its parent."""
PATIENCE_S = 5.0
"""How long one that is to die waits for something to hold while it does."""
TELL_EVERY_S = 0.25

_say = say_on(1)


def main() -> int:
    """The process; its exit code."""
    address, who, seed = sys.argv[1:]
    logging.getLogger("lmcache_mp").setLevel(logging.CRITICAL)  # what fails open is counted
    work = Work(address, who, int(seed), _say)
    _say(Started())
    told_s = 0.0
    while (order := _order()) != END:
        if order:
            _die(work, Kind(order))
        work.step()
        if (now_s := time.monotonic()) > told_s + TELL_EVERY_S:
            told_s = now_s
            _say(work.tally)
    work.close()
    _say(work.tally)
    return 0


def _order() -> str:
    """What the conductor says now; it is over if there is none any more."""
    if not select.select([0], [], [], 0)[0]:
        return ""
    return sys.stdin.readline().strip() or END


def _die(work: Work, how: Kind) -> NoReturn:
    place = work.rng.randrange(len(NAMESPACES))
    rank = work.ranks[place][0]
    _say(work.tally)
    if how == Kind.CLIENT_DIES_PINNED:
        _die_pinned(work, rank)
    keys = private_keys(place, f"{os.getpid()} {time.monotonic()}")
    batch = _reserved(rank, keys)
    slots = batch.slots()
    if how == Kind.CLIENT_DIES_COPYING:
        for index, view in slots:
            work.chunk_bytes.write(of_shard(keys[index], rank.shard), view)
            if index >= len(keys) // 2:
                view[len(view) // 2 :] = POISON[len(view) // 2 :]
                break
    else:
        for _, view in slots:
            view[:] = POISON
    if how == Kind.CLIENT_DIES_FORKED and os.fork() == 0:
        _outlive()
    _end(Dying(how, time.monotonic(), place, keys.buffer if len(batch) == len(keys) else b""))


def _die_pinned(work: Work, rank: Rank) -> NoReturn:
    keys = prompt_keys(rank.place, work.rng.randrange(PROMPTS[rank.place]))
    for shard in work.ranks[rank.place]:
        work.serve(shard, keys)
    rank.pin(keys, PATIENCE_S)
    hit = rank.retrieve(keys)
    rank.verify(hit, keys, work.chunk_bytes, "before death")
    _end(Dying(Kind.CLIENT_DIES_PINNED, time.monotonic()))


def _reserved(rank: Rank, keys: ChunkKeys) -> StoreBatch:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        batch, *_ = rank.ask(lambda: rank.cache.begin_store(keys))
        if len(batch) or time.monotonic() > deadline_s:
            return batch


def _outlive() -> NoReturn:
    """In the child: hold whatever fork gave it, the conductor's pipes excepted."""
    os.close(0)
    os.close(1)
    time.sleep(ORPHAN_S)
    os._exit(0)


def _end(last_words: Dying) -> NoReturn:
    _say(last_words)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")


if __name__ == "__main__":
    sys.exit(main())
