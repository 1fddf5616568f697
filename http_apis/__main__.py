"""The http process: `python -m http_apis --run-dir DIR --fd N`, started by the supervisor.

N is an inherited TCP socket that listens already, so that connections wait in its backlog while
this process starts or is restarted. SIGTERM and SIGINT end it with 0 once open requests are
answered, or cut off after `GRACE_S`; exit code 2 means that a restart would not help.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GRACE_S = 3
EXIT_MISCONFIGURED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before the imports, they take long
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has shut down
        serve(parsed(argv))
    return 0


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m http_apis", description="The http process.")
    parser.add_argument("--run-dir", type=Path, required=True, help="the server's run directory")
    parser.add_argument("--fd", type=listening_socket, required=True, help="a listening TCP socket")
    return parser.parse_args(argv)


def listening_socket(text: str) -> socket.socket:
    """The inherited socket behind a descriptor's number."""
    try:
        listener = socket.socket(fileno=int(text))
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (ValueError, OSError) as fault:
        raise argparse.ArgumentTypeError(f"{text!r} is no inherited socket: {fault}") from None
    if not listening:
        raise argparse.ArgumentTypeError(f"the socket of descriptor {text} does not listen")
    listener.set_inheritable(False)
    return listener


def serve(arguments: argparse.Namespace) -> None:
    """Run uvicorn on the inherited socket."""
    from lmcache_mp.process import die_with_parent

    die_with_parent()

    import uvicorn

    from bus import BadAddress
    from http_apis.app import create_app
    from lmcache_mp.config import Config, ConfigError
    from lmcache_mp.logging import configure, init_logger
    from lmcache_mp.rundir import RunDir

    run_dir = RunDir(arguments.run_dir)
    try:
        config, bus_address = Config.load(run_dir), run_dir.bus_address
    except (ConfigError, BadAddress) as fault:
        print(f"http: {fault}", file=sys.stderr)
        sys.exit(EXIT_MISCONFIGURED)
    debug = config.log_level == "debug"
    configure(config.log_level, config.log_format, process="http")
    app = create_app(bus_address, [Path(path) for path in config.http_api_dir])
    host, port = arguments.fd.getsockname()[:2]
    init_logger("http_apis").info("http serving address=%s:%d", host, port)
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level=None if debug else "warning",  # its starts and stops are the supervisor's news
        access_log=debug,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    uvicorn.Server(settings).run(sockets=[arguments.fd])


if __name__ == "__main__":
    sys.exit(main())
