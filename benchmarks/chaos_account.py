"""What the clients of a chaos run told, added up. Threads may tell at the same time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from benchmarks.chaos_log import (
    Committed,
    Deleted,
    Deleting,
    Dying,
    Line,
    Missed,
    Silence,
    Started,
    Tally,
    Wrong,
)
from benchmarks.chaos_plan import LONGEST_CLIENT_STOP_S, LONGEST_ENGINE_STOP_S
from benchmarks.chaos_promises import Promises
from benchmarks.chaos_prompts import NAMESPACES

IN_FLIGHT_S = LONGEST_CLIENT_STOP_S + LONGEST_ENGINE_STOP_S + 3.0
"""So long after its caller gave up, a request may still be carried out."""


@dataclass(slots=True)
class Witness:
    """One process that tells, from its start to its end."""

    name: str
    tally: Tally = field(default_factory=Tally)
    deleting: Deleting | None = None
    silences: list[Silence] = field(default_factory=list)
    stops: list[tuple[float, float]] = field(default_factory=list)
    """When it was stopped itself."""
    last_words: Dying | None = None
    started: bool = False

    def longest_silence_s(self) -> float:
        """Of the server towards it; the time in which it was stopped itself does not count."""
        return max((self._awake_s(silence) for silence in self.silences), default=0.0)

    def _awake_s(self, silence: Silence) -> float:
        asleep_s = sum(
            max(0.0, min(end, silence.to_s) - max(begin, silence.from_s))
            for begin, end in self.stops
        )
        return silence.to_s - silence.from_s - asleep_s


class Account:
    """All witnesses, and what follows from what they told."""

    def __init__(self) -> None:
        self.promises = Promises(namespace.num_shards for namespace in NAMESPACES)
        self.witnesses: list[Witness] = []
        self.wrong: list[Wrong] = []
        self._lock = threading.Lock()

    def witness(self, name: str) -> Witness:
        """A new one."""
        witness = Witness(name)
        with self._lock:
            self.witnesses.append(witness)
        return witness

    def take(self, witness: Witness, line: Line) -> None:
        """Write down what a witness says."""
        with self._lock:
            match line:
                case Committed():
                    self.promises.committed(line.keys, line.shard, line.asked_s, line.answered_s)
                case Missed():
                    self.promises.missed(line)
                case Deleting():
                    witness.deleting = line
                case Deleted():
                    self._forget(witness, line.answered_s + (IN_FLIGHT_S if line.failed else 0))
                case Wrong():
                    self.wrong.append(line)
                case Silence():
                    witness.silences.append(line)
                case Tally():
                    witness.tally = line
                case Dying():
                    witness.last_words = line
                case Started():
                    witness.started = True

    def gone(self, witness: Witness, at_s: float) -> None:
        """It says no more; what it was about to delete may be deleted for a while yet."""
        with self._lock:
            self._forget(witness, at_s + IN_FLIGHT_S)

    def cleared(self, place: int, from_s: float, to_s: float) -> None:
        """A namespace was cleared at some moment then."""
        with self._lock:
            self.promises.cleared(place, from_s, to_s)

    def _forget(self, witness: Witness, until_s: float) -> None:
        if witness.deleting is not None:
            self.promises.deleted(witness.deleting.keys, witness.deleting.asked_s, until_s)
            witness.deleting = None
