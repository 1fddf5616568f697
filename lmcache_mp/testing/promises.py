"""The contract's sentences, and what is raised with the one that is broken."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator

PATIENCE_S = 20.0
"""How long is waited for what happens in the background; a call may take three times as long."""

NOT_LONG = "Must not take long: what has to be scanned is scanned in the background."
THREADS = "Its methods are called by several threads at a time."
MISS = "A miss is an answer, never an error."
NEVER_REPLACED = (
    "Keys are unique: an object that is there is never replaced by another one, so whoever comes "
    "second may skip the writing."
)
LOOKUP = "Which of the keys have an object, as far as is known without reading it."
STORE = "Keep the bytes of all parts, one after the other, as one object: whole or not at all."
LENT = "They are only to be read, and only until this returns."
LOAD = "Read an object into the parts, one after the other; its whole length, None without one."
OTHER_LENGTH = (
    "An object of another length than the parts have together is read as far as both go, or not "
    "at all."
)
DELETE = "Forget these objects; those that are not there are no error."
SCAN = "The keys of all objects, in any order; what is stored or deleted meanwhile may show."
CLOSE = "Let go of everything."
FIGURES = "Numbers for people and metrics"


class ContractBroken(AssertionError):
    """An adapter does not keep its contract; says what it did, and which sentence that breaks."""


def that(fine: object, otherwise: str | Callable[[], str]) -> None:
    """An assert that stays when asserts are compiled away."""
    if not fine:
        raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())


@contextlib.contextmanager
def promise(sentence: str) -> Generator[None]:
    """What goes wrong inside breaks this sentence of the contract."""
    try:
        yield
    except ContractBroken:
        raise
    except Exception as fault:
        what = str(fault) if type(fault) is AssertionError else f"it raised {fault!r}"
        raise ContractBroken(f"{what}; the contract says: {sentence!r}") from fault


def eventually(condition: Callable[[], object], otherwise: Callable[[], str]) -> None:
    """Wait until it is true, for as long as may be expected of what is done in the background."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        that(time.monotonic() < deadline_s, otherwise)
        time.sleep(0.005)
