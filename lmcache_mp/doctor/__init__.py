"""What usually goes wrong on a machine, looked at before it does: `lmcache-mp doctor`.

Each check is a function of what it looks at, and answers with a `Finding`. None changes anything;
one makes and removes a probe in a run directory that is there already.

Reading order: `finding`, then the checks: `memory`, `limits`, `places`, `sharing`, `versions`,
`server`; then `examination`, which applies them all to this machine.
"""

from lmcache_mp.doctor.examination import examine
from lmcache_mp.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]
