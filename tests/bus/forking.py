"""A process that forks while it has a client; run by test_client.

The child must be told that the client is not its own, and must be able to end like any process; the
parent's client must not notice.
"""

from __future__ import annotations

import os
import sys
import warnings

from bus import Client, WrongThread
from tests.bus.vocabulary import Echo, Tell, Text


def child(client: Client) -> int:
    attempts = (
        lambda: client.call(Echo("from the child")),
        lambda: client.start(Echo("from the child")),
        lambda: client.notify(Tell("from the child")),
    )
    for attempt in attempts:
        try:
            attempt()
        except WrongThread:
            continue
        return 1
    client.close()
    with Client(client.address) as own:
        return 0 if own.call(Echo("of its own")) == Text("of its own") else 2


def main(address: str) -> int:
    warnings.simplefilter("ignore", DeprecationWarning)  # forking a process that has threads
    client = Client(address)
    assert client.call(Echo("before")) == Text("before")
    open_call = client.start(Echo("across the fork"))
    pid = os.fork()
    if pid == 0:
        return child(client)
    _, status = os.waitpid(pid, 0)
    assert open_call.result() == Text("across the fork")
    assert client.call(Echo("after")) == Text("after")
    client.close()
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
