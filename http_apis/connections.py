"""A bound on connections, so that those who hold many keep nobody else out.

Past the bound a new connection takes the place of another: of the oldest that has nothing under
way (it never asked, or stopped in the middle of its request), else of the oldest of all. So no
clock is needed, and who merely waits is cut off only when its place is wanted.
"""

from __future__ import annotations

from asyncio import Transport
from dataclasses import dataclass
from typing import cast

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from lmcache_mp.process import raise_file_limit

MOST_CONNECTIONS = 512
LONGEST_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections fit into this process's descriptors."""

    connections: int
    backlog: int
    """asyncio accepts so many at a time, before the first of them is counted."""

    @classmethod
    def of_this_process(cls) -> Room:
        """Raise the limit on descriptors as far as it may be, and divide it."""
        limit = raise_file_limit()
        return cls(min(MOST_CONNECTIONS, limit // 4), min(LONGEST_BACKLOG, limit // 8))


class BoundedConnection(H11Protocol):
    """One connection of at most `bound`; uvicorn makes one for each."""

    bound = MOST_CONNECTIONS

    _since_s = 0.0

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since_s = self.loop.time()
        if len(self.connections) > self.bound:
            self._make_room()

    def _make_room(self) -> None:
        others: list[BoundedConnection] = [
            other
            for other in self.connections
            if isinstance(other, BoundedConnection)
            and other is not self
            and not other.transport.is_closing()
        ]
        victim = min(others, key=lambda other: (other._is_served, other._since_s), default=self)
        victim.transport.abort()  # closing would wait for a peer that does not read

    @property
    def _is_served(self) -> bool:
        """Whether a whole request has come whose answer has not gone to the last byte."""
        if self.transport.get_write_buffer_size():
            return True
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None before the first request
        return cycle is not None and not cycle.more_body and not cycle.response_complete
