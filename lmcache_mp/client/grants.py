"""Calls that grant a lease or end one, when the answer may be lost."""

from __future__ import annotations

import time
from typing import TypeVar

import bus
from lmcache_mp.client.deadline import Deadline
from lmcache_mp.client.session import ClientClosed, Link, Session
from lmcache_mp.errors import LeaseNotFound
from lmcache_mp.messages import CommitStore

R = TypeVar("R")

COMMIT_RETRY_S = 0.01


def leased(
    session: Session, link: Link, request: bus.Request[R], deadline: Deadline
) -> tuple[int, R]:
    """A call that grants a lease: the lease's id, and the answer.

    If its answer is not seen, the connection goes, so that the answer cannot be delivered, and
    the lease is owed, in case it has been.
    """
    session.require_lease_right()
    lease_id = session.new_lease_id()
    try:
        reply = link.client.start(request, lease_id).result(deadline.left_s())
    except bus.CallError:
        session.held.discard(lease_id)
        raise
    except bus.BusError:
        session.lose_link()
        session.owe(lease_id)
        raise
    if lease_id not in session.held:  # another thread has met the server's successor
        raise bus.Unavailable(f"lease {lease_id} did not outlive the server that granted it")
    return lease_id, reply


def committed(session: Session, request: CommitStore, deadline: Deadline) -> int:
    """Commit to the engine that lives: the one that granted the lease, or its successor."""
    while True:
        try:
            link = session.link(deadline)
            if request.lease_id not in session.held:
                raise LeaseNotFound(
                    f"lease {request.lease_id} is not known to the server's successor: the"
                    " commit came through before, or the chunks are lost"
                )
            return link.client.call(request, deadline.left_s()).chunks
        except ClientClosed:
            raise
        except bus.Unavailable:
            session.lose_link()
            time.sleep(min(COMMIT_RETRY_S, deadline.left_s()))
