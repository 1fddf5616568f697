"""What a route demands of those who ask. A route that says nothing is judged by its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
JSON = "application/json"
MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A decorator of the function that is the route, for instance

        @router.post("/run_script")
        @Demand(never_open=True, media_types=("multipart/form-data",))
        async def run_script(...)

    A route mounted otherwise (an ASGI application) cannot be marked.
    """

    changes: bool | None = None
    """Whether it changes something, and so needs the token. None: unless it is GET or HEAD."""
    never_open: bool = False
    """Closed without a token file, on the loopback interface too."""
    media_types: tuple[str, ...] = (JSON,)
    """What a body may be, if the route changes something. Browsers send text/plain, forms and
    multipart across sites without asking, so these must be meant."""
    max_body_bytes: int = MAX_BODY_BYTES

    def __call__(self, route: F) -> F:
        """Mark the function that is the route."""
        route.__dict__["demand"] = self
        return route

    def is_change(self, is_safe: bool) -> bool:
        """Whether a request is to be taken for one that changes something; its method `is_safe`."""
        changes = not is_safe if self.changes is None else self.changes
        return changes or self.never_open


def demand_of(route: object) -> Demand | None:
    """What the function behind a route was marked with."""
    demand = getattr(route, "demand", None)
    return demand if isinstance(demand, Demand) else None
