"""What the server or the library says, as sentences that say what to do."""

from __future__ import annotations

import ssl

from redis import exceptions as e

from lmcache_mp.l2 import AdapterError

# The first that fits counts. (errors, what it means, whether trying again cannot help)
_MEANINGS: tuple[tuple[tuple[type[Exception], ...], str, bool], ...] = (
    (
        (e.AuthenticationError,),
        "does not accept the user and password; they are in the URL, in password_file or in"
        " REDISCLI_AUTH",
        True,
    ),
    ((e.NoPermissionError,), "does not allow this user what is needed", True),
    (
        (e.OutOfMemoryError,),
        "is full: raise its maxmemory, or let it evict (maxmemory-policy allkeys-lru)",
        True,
    ),
    ((e.ReadOnlyError,), "is a replica, which cannot be written to: name its primary", False),
    ((e.MovedError, e.AskError), "is a cluster: leave `cluster` unset, or set it to true", True),
    ((e.BusyLoadingError,), "is still loading its data", False),
    ((e.ClusterDownError, e.MasterDownError, e.TryAgainError), "is not complete just now", False),
    ((e.RedisClusterException,), "does not answer as a cluster", False),
    ((e.TimeoutError,), "did not answer in time", False),
    ((e.ConnectionError, OSError), "cannot be reached", False),
)
Refused = e.ResponseError
FAULTS = (e.RedisError, e.RedisClusterException, OSError)


def explained(fault: Exception, where: str) -> AdapterError:
    """The error to raise for any of `FAULTS`; `where` names the server, without secrets."""
    said = " ".join(str(fault).split())
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(fault)):
        return AdapterError(
            f"the certificate of {where} does not verify (ca_file names the one to trust): {said}",
            lasting=True,
        )
    for kinds, meaning, lasting in _MEANINGS:
        if isinstance(fault, kinds):
            return AdapterError(f"{where} {meaning}: {said}", lasting=lasting)
    return AdapterError(f"{where} refused: {said}")


def _causes(fault: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while fault is not None and fault not in chain:
        chain.append(fault)
        fault = fault.__cause__ or fault.__context__
    return chain
