"""What a check says."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["ok", "advice", "problem"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One row. A problem: a server of these settings will not start, or will fail at its work.
    Advice: it will work, but not as well as it could.
    """

    check: str
    verdict: Verdict
    found: str
    change: str = ""
    """What to do about it, unless it is ok."""


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, verdict="ok", found=found)


def advice(check: str, found: str, change: str) -> Finding:
    """It could be better."""
    return Finding(check=check, verdict="advice", found=found, change=change)


def problem(check: str, found: str, change: str) -> Finding:
    """It will not do."""
    return Finding(check=check, verdict="problem", found=found, change=change)
