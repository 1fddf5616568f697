"""`lmcache-mp check`."""

from __future__ import annotations

from lmcache_mp.cli.link import Link
from lmcache_mp.cli.patience import patience
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.messages import Check


def run(resolved: Resolved, *, address: str | None, key_file: str | None) -> int:
    """Print every broken invariant; 1 if there is one."""
    with patience("comparing every slot: the server answers nobody meanwhile"):
        report = Link(resolved.config, address, key_file).call(Check(), timeout_s=300.0)
    for fault in report.faults:
        print(fault)
    faults = f"{len(report.faults)} faults" if report.faults else "no fault"
    print(f"checked {report.checked_slots} slots: {faults}")
    return 1 if report.faults else 0
