"""Which adapters a running server uses: `<run-dir>/l2.json`, written by the engine alone.

It begins as the settings say, and follows what is attached and detached; so an engine that is
restarted, and workers, which read their own part, know what there is. It ends with the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from lmcache_mp.rundir import RunDir
from lmcache_mp.tiering.spec import AdapterSpec, BadAdapter

Roster = dict[str, AdapterSpec]
"""By name, in the order in which they are asked."""


def roster_of(specs: Iterable[AdapterSpec]) -> Roster:
    """Give every adapter its name; raises `BadAdapter` if two have the same one."""
    roster: Roster = {}
    for spec in specs:
        roster[free_name(spec, roster)] = spec
    return roster


def free_name(spec: AdapterSpec, roster: Roster) -> str:
    """The name of one more adapter: its own, else its type with a number if need be."""
    name: str = spec.common.name
    if name:
        if name in roster:
            raise BadAdapter(f"there is an adapter {name!r} already: name it otherwise")
        return name
    kind: str = spec.common.type.rpartition(".")[2]
    names = (kind, *(f"{kind}-{number}" for number in range(2, len(roster) + 3)))
    return next(name for name in names if name not in roster)


def save(run_dir: RunDir, roster: Roster) -> None:
    """Write it: 0600, whole or not at all; raises `OSError`."""
    draft = run_dir.path / f".l2.{os.getpid()}"
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode({name: spec.mapping for name, spec in roster.items()}))
    draft.replace(run_dir.l2_file)


def load(run_dir: RunDir) -> Roster | None:
    """What `save` wrote; None if nobody has. Raises `BadAdapter` if it cannot be read."""
    try:
        written = msgspec.json.decode(run_dir.l2_file.read_bytes(), type=dict[str, dict[str, Any]])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as fault:
        raise BadAdapter(f"{run_dir.l2_file}: {fault}") from None
    return {name: AdapterSpec(mapping) for name, mapping in written.items()}
