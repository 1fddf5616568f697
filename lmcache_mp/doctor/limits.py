"""What this process, and so a server that it would start, may have."""

from __future__ import annotations

import resource

from lmcache_mp.doctor.finding import Finding, advice, ok, problem
from lmcache_mp.units import format_bytes

FILES_OF_ENGINE = 64
"""Files and sockets of an engine that has no client; out of them, libzmq aborts the process."""
FILES_PER_CLIENT = 2
"""The engine's: a connection and the client's lock file."""
FEW_CLIENTS = 100

_UNLIMITED = (resource.RLIM_INFINITY, -1)


def open_files(hard_limit: int) -> Finding:
    """Enough descriptors for the engine and its clients? A server raises its own limit so far."""
    check = "open files"
    if hard_limit in _UNLIMITED:
        return ok(check, "unlimited")
    clients = max(0, (hard_limit - FILES_OF_ENGINE) // FILES_PER_CLIENT)
    found = f"{hard_limit}: enough for {clients} connections"
    change = "ulimit -n 65536; systemd: LimitNOFILE=65536; docker run --ulimit nofile=65536"
    if not clients:
        return problem(check, found, change)
    return advice(check, found, change) if clients < FEW_CLIENTS else ok(check, found)


def locked_memory(soft_limit_bytes: int, l1_bytes: int) -> Finding:
    """Enough for who registers L1 with a device? The server itself locks nothing."""
    check = "locked memory"
    if soft_limit_bytes in _UNLIMITED:
        return ok(check, "unlimited")
    found = f"{format_bytes(soft_limit_bytes)}, for an L1 of {format_bytes(l1_bytes)}"
    if soft_limit_bytes >= l1_bytes:
        return ok(check, found)
    return advice(
        check,
        found,
        "only if an inference engine registers L1 with a network card (RDMA), for that engine:"
        " ulimit -l unlimited; systemd: LimitMEMLOCK=infinity; docker run --ulimit memlock=-1",
    )
