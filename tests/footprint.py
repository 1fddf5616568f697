"""What a process has of the system, apart from what it shares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one process at one moment."""

    private_bytes: int
    """Resident, not counting files and shared memory."""
    descriptors: int
    client_files: int
    """In the run directory."""

    @classmethod
    def of(cls, pid: int, clients: Path) -> Footprint:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return cls(
            private_bytes=int(fields["RssAnon"].split()[0]) * 1024,
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            client_files=len(os.listdir(clients)),
        )
