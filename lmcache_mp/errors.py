"""What the cache answers when it cannot do what was asked. Each travels over the bus as itself.

A miss is not among them: a miss is an answer.
"""

from bus import CallError


class NotRegistered(CallError):
    """The namespace id is unknown to this incarnation of the server."""

    code = "not_registered"


class NamespaceConflict(CallError):
    """A namespace of the same name has other sizes."""

    code = "namespace_conflict"


class ChunkTooLarge(CallError):
    """One chunk of the namespace does not fit into L1."""

    code = "chunk_too_large"


class BadKeys(CallError):
    """The keys are not a whole number of 32-byte keys, or too many."""

    code = "bad_keys"


class BadShard(CallError):
    """The shard is out of the namespace's range."""

    code = "bad_shard"


class LeaseNotFound(CallError):
    """This client holds no such lease: it is another's, finished, or of an earlier life."""

    code = "lease_not_found"


class BadLease(CallError):
    """The lease is not of the kind, or does not hold the slots, that the request says."""

    code = "bad_lease"


class LeaseRefused(CallError):
    """The client cannot be given bytes: it said no hello, or cannot prove that it lives."""

    code = "lease_refused"


class LimitReached(CallError):
    """A bound of the server is reached; the sentence names it."""

    code = "limit_reached"


class Draining(CallError):
    """The server is stopping and grants nothing new."""

    code = "draining"


class NoSuchAdapter(CallError):
    """No L2 adapter of that name is attached."""

    code = "no_such_adapter"


class CannotAttach(CallError):
    """An L2 adapter cannot be attached, detached or cleared as asked."""

    code = "cannot_attach"


class NotAllowed(CallError):
    """Not for peers that come by a network."""

    code = "not_allowed"
