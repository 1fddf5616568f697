"""`lmcache-mp completion bash|zsh`: `source <(lmcache-mp completion bash)` in ~/.bashrc.

The script is written once, by shtab, from the grammar: a Tab then costs the shell microseconds.
(argcomplete would start Python at every Tab, 0.1 s each, to complete nothing more: no value of ours
is known only to a running program.)
"""

from __future__ import annotations

from lmcache_mp.cli.arguments import parsers
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.config import settings


def run(resolved: Resolved, *, shell: str) -> int:
    """Print the script."""
    import shtab  # no other command needs it

    paths = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    choices = {setting.key: setting.choices for setting in settings() if setting.choices}
    parser, commands = parsers()
    for command in commands.values():
        for action in command._actions:
            action.choices = action.choices or choices.get(action.dest)
            if isinstance(action.metavar, str) and action.metavar in paths:
                action.complete = paths[action.metavar]  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))
    return 0
