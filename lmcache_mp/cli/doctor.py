"""`lmcache-mp doctor`."""

from __future__ import annotations

import msgspec

from lmcache_mp.cli.sources import Resolved
from lmcache_mp.doctor import Finding, examine


def run(resolved: Resolved, *, json: bool) -> int:
    """Print what was found and what to change; 1 if there is a problem."""
    findings = list(examine(resolved.config))
    if json:
        print(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
    else:
        _show(findings)
    return 1 if any(finding.verdict == "problem" for finding in findings) else 0


def _show(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from lmcache_mp.cli.screen import console, safe

    colours = {"ok": "green", "advice": "yellow", "problem": "bold red"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("check", style="bold", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found, and what to change", overflow="fold")
    for finding in findings:
        said = Text(safe(finding.found))
        if finding.change:
            said.append(f"\n-> {safe(finding.change)}", colours[finding.verdict])
        verdict = Text(finding.verdict, colours[finding.verdict])
        table.add_row(safe(finding.check), verdict, said)
    shown = console()
    shown.print(table)
    count = {verdict: sum(f.verdict == verdict for f in findings) for verdict in colours}
    shown.print(f"\nproblems: {count['problem']}, advice: {count['advice']}")
