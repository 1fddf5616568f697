"""Adapters that come and go while the server runs, on an operator's word."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bus import DEFERRED, Call, Done, Server
from lmcache_mp.errors import CannotAttach, NotAllowed
from lmcache_mp.logging import init_logger
from lmcache_mp.rundir import RunDir
from lmcache_mp.tiering import messages as m
from lmcache_mp.tiering import roster
from lmcache_mp.tiering.jobs import Ask
from lmcache_mp.tiering.spec import AdapterSpec, BadAdapter
from lmcache_mp.tiering.station import Station
from lmcache_mp.tiering.tiers import Tiers

log = init_logger(__name__)

ATTACH_S = 30.0
"""How long a new adapter may take to open."""


@dataclass(slots=True)
class Attaching:
    """A new adapter whose worker has not said yet that it can be used."""

    call: Call
    until_s: float


@dataclass(slots=True)
class Detaching:
    """An adapter that finishes what waits for it."""

    call: Call
    until_s: float


class Attachments:
    """Which adapters there are, and the operators' calls that wait for one to come or to go."""

    def __init__(
        self, server: Server, tiers: Tiers, run_dir: RunDir, specs: Sequence[AdapterSpec]
    ) -> None:
        """`specs` are those of the settings; what an earlier engine has written down goes first."""
        self._tiers = tiers
        self._run_dir = run_dir
        self._attaching: dict[str, Attaching] = {}
        self._detaching: dict[str, Detaching] = {}
        written = roster.load(run_dir)
        self._roster = roster.roster_of(specs) if written is None else written
        for name, spec in self._roster.items():
            tiers.add(name, spec)
        if self._roster:
            roster.save(run_dir, self._roster)
        server.on(m.L2Attach, self.attach)
        server.on(m.L2Detach, self.detach)
        server.on(m.L2Clear, self.clear)

    def attach(self, call: Call, message: m.L2Attach) -> m.L2Attached:
        if call.origin:  # it would have this host import modules, and open files and connections
            raise NotAllowed(f"adapters are not attached for peers of other hosts ({call.origin})")
        try:
            spec = AdapterSpec(message.spec)
            name = roster.free_name(spec, self._roster)
        except BadAdapter as fault:
            raise CannotAttach(f"adapter is not attached: {fault}") from None
        self._write({**self._roster, name: spec})
        self._tiers.add(name, spec)
        self._attaching[name] = Attaching(call, time.monotonic() + ATTACH_S)
        log.info("l2 adapter attaching name=%s", name)
        return DEFERRED  # type: ignore[no-any-return]

    def detach(self, call: Call, message: m.L2Detach) -> Done:
        station = self._tiers.find(message.name)
        if station.name in self._detaching or station.name in self._attaching:
            raise CannotAttach(f"adapter {station.name} is being attached or detached already")
        station.detach()
        self._detaching[station.name] = Detaching(call, time.monotonic() + message.drain_s)
        return DEFERRED  # type: ignore[no-any-return]

    def clear(self, call: Call, message: m.L2Clear) -> Done:
        station = self._tiers.find(message.name)

        def cleared(outcomes: bytes | None) -> None:
            station.known.clear()
            if outcomes == bytes((m.DONE,)):
                call.answer(Done())
            else:
                why = station.error or "its worker could not"
                call.fail(CannotAttach(f"adapter {station.name} is not cleared: {why}"))

        station.ask(Ask(m.Verb.CLEAR, None, (), cleared))
        return DEFERRED  # type: ignore[no-any-return]

    def reported(self, station: Station, error: str | None) -> None:
        """An adapter's worker says that it is open, or why not."""
        attaching = self._attaching.pop(station.name, None)
        if attaching is None:
            return
        if error is None:
            attaching.call.answer(m.L2Attached(name=station.name))
        else:
            self._remove(station)
            attaching.call.fail(CannotAttach(f"adapter {station.name} is not attached: {error}"))

    def tick(self, now_s: float) -> None:
        """Answer those whose adapter has come to nothing, or is done."""
        for name, attaching in list(self._attaching.items()):
            if now_s >= attaching.until_s:
                del self._attaching[name]
                self._remove(self._tiers.stations[name])
                attaching.call.fail(
                    CannotAttach(f"adapter {name} is not attached: not open in {ATTACH_S:g} s")
                )
        for name, detaching in list(self._detaching.items()):
            station = self._tiers.stations[name]
            if station.idle or now_s >= detaching.until_s:
                del self._detaching[name]
                left = station.backlog.clear()
                self._remove(station)
                log.info("l2 adapter detached name=%s chunks_not_stored=%d", name, left)
                detaching.call.answer(Done())

    def _remove(self, station: Station) -> None:
        self._tiers.remove(station)
        try:
            self._write({name: spec for name, spec in self._roster.items() if name != station.name})
        except CannotAttach as fault:  # an engine that is restarted would have it again
            log.error("adapter %s is not struck from the list: %s", station.name, fault)

    def _write(self, changed: roster.Roster) -> None:
        try:
            roster.save(self._run_dir, changed)
        except OSError as fault:
            raise CannotAttach(f"{self._run_dir.l2_file}: {fault.strerror}") from None
        self._roster = changed
