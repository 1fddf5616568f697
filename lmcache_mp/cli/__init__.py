"""The command line: `lmcache-mp COMMAND`. Each command is a module here with a `run`.

Exit codes: 0 done; 1 it could not be done, or `check` found faults; 2 it was asked for wrongly.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from bus import BadAddress
from lmcache_mp.cli.arguments import parse
from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.sources import resolve
from lmcache_mp.config import ConfigError
from lmcache_mp.rundir import RunDirError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        command, options, flags = parse(sys.argv[1:] if argv is None else argv)
        resolved = resolve(flags, os.environ)
        run = importlib.import_module(f"lmcache_mp.cli.{command}").run
        return int(run(resolved, **options))
    except (ConfigError, RunDirError, BadAddress) as fault:
        return _refused(fault, 2)
    except Failure as fault:
        return _refused(fault, fault.exit_code)
    except BrokenPipeError:  # `lmcache-mp config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _refused(fault: Exception, exit_code: int) -> int:
    print(f"lmcache-mp: {fault}", file=sys.stderr)
    return exit_code
