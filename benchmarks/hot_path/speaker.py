"""A client that says the bare messages of the hot path, without what `CacheClient` adds."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import bus
from lmcache_mp.client import Namespace
from lmcache_mp.liveness import LifeLine
from lmcache_mp.messages import (
    CommitStore,
    Goodbye,
    Hello,
    PrepareRetrieve,
    PrepareStore,
    RegisterNamespace,
    Release,
)
from lmcache_mp.rundir import RunDir, boot_id


class Speaker:
    """One connection that may lease."""

    def __init__(self, run_dir: RunDir, lifeline: LifeLine, namespace: Namespace) -> None:
        self._lease_ids = itertools.count(1)
        self._client = bus.Client(run_dir.bus_address, call_ids=self._lease_ids)
        hello = Hello(
            who="bench",
            pid=os.getpid(),
            client_id=lifeline.client_id,
            lock_inode=lifeline.inode,
            boot_id=boot_id(),
        )
        self._client.epoch = self._client.call(hello).epoch
        registered = self._client.call(RegisterNamespace(namespace=namespace))
        self._namespace_id = registered.namespace_id

    def retrieve(self, keys: bytes) -> int:
        """Prepare and release; returns the chunks."""
        lease_id = next(self._lease_ids)
        request = PrepareRetrieve(self._namespace_id, keys)
        grant = self._client.start(request, lease_id).result()
        self._client.notify(Release(lease_id))
        return len(grant.slots) // 4

    def store(self, keys: bytes) -> int:
        """Prepare and commit, without writing anything; returns the chunks."""
        lease_id = next(self._lease_ids)
        self._client.start(PrepareStore(self._namespace_id, keys), lease_id).result()
        return self._client.call(CommitStore(lease_id)).chunks

    def close(self) -> None:
        """Say goodbye."""
        self._client.call(Goodbye())
        self._client.close()


@contextlib.contextmanager
def speaking(run_dir: RunDir, namespace: Namespace) -> Iterator[Speaker]:
    """A speaker that lives for a while."""
    lifeline = LifeLine.create(run_dir.clients)
    try:
        speaker = Speaker(run_dir, lifeline, namespace)
        yield speaker
        speaker.close()
    finally:
        lifeline.close()
