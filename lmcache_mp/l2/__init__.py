"""L2 adapters: one module each; its name is the `type` that people write, and nothing lists it.

A module has a `Config` (an `AdapterConfig` with the fields that `type` does not mean for everybody)
and an `Adapter`. Around an adapter, and only once for all of them, the worker process does threads,
retries, deadlines, the circuit breaker, checksums and metrics (`lmcache_mp.worker`); so an adapter
is plain synchronous code that moves bytes. `lmcache_mp.testing.check_l2_adapter` says whether one
keeps the contract.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

ENVELOPE_BYTES = 4096
"""Every object begins with so many bytes of the worker's own: a page, as O_DIRECT likes it."""


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every module's `Config`. Bounds belong into `Annotated[..., Meta(...)]`.

    A field whose name ends in `password` or `secret` is never shown.
    """


class AdapterError(Exception):
    """The adapter cannot do what it was asked; a sentence with the actual values.

    `lasting`: trying again cannot help (a wrong password, a full disk, a read-only directory).
    """

    def __init__(self, sentence: str, *, lasting: bool = False) -> None:
        super().__init__(sentence)
        self.lasting = lasting


C = TypeVar("C", bound=AdapterConfig)


class Adapter(abc.ABC, Generic[C]):
    """A place that keeps objects, each under a 32-byte key that stands for its content.

    Its methods are called by several threads at a time. They may block, and raise anything: an
    exception is a failed try, which the worker repeats unless it is an `AdapterError` that is
    `lasting`. A miss is an answer, never an error. Keys are unique: an object that is there is
    never replaced by another one, so whoever comes second may skip the writing.
    """

    def __init__(self, config: C) -> None:
        """Connect, or open; raises `AdapterError` if that is not possible as configured.

        Must not take long: what has to be scanned is scanned in the background.
        """
        self.config = config

    @abc.abstractmethod
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        """Which of the keys have an object, as far as is known without reading it."""

    @abc.abstractmethod
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        """Keep the bytes of all parts, one after the other, as one object: whole or not at all.

        Each part begins on a page of memory and is a whole number of pages long. They are only to
        be read, and only until this returns.
        """

    @abc.abstractmethod
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        """Read an object into the parts, one after the other; its whole length, None without one.

        An object of another length than the parts have together is read as far as both go, or not
        at all.
        """

    @abc.abstractmethod
    def delete(self, keys: Sequence[bytes]) -> None:
        """Forget these objects; those that are not there are no error."""

    @abc.abstractmethod
    def scan(self) -> Iterator[bytes]:
        """The keys of all objects, in any order; what is stored or deleted meanwhile may show."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. No other thread is in a call."""

    def figures(self) -> dict[str, int | float]:
        """Numbers for people and metrics: `used_bytes`, `objects`, ... Must not block."""
        return {}


AnyAdapter = Adapter[Any]
