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
    from lmcache_mp.process import die_with_parent, give_way

    die_with_parent()
    give_way()

    import uvicorn

    from bus import BadAddress
    from http_apis.app import create_app
    from http_apis.bearer import Bearer
    from http_apis.connections import BoundedConnection, Room
    from http_apis.door import Door
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
    log = init_logger("http_apis")
    host, port = arguments.fd.getsockname()[:2]
    bearer = Bearer(config.http_token_file) if config.http_token_file is not None else None
    door = Door(host, (config.http_host, *config.http_allowed_host), bearer)
    app = create_app(bus_address, door, [Path(path) for path in config.http_api_dir])
    room = Room.of_this_process()
    BoundedConnection.bound = room.connections
    log.info("http serving address=%s:%d", host, port)
    if bearer is None and not door.is_local:
        log.warning(
            "http listens beyond the loopback interface without --http-token-file: requests that"
            " change something are refused"
        )
    settings = uvicorn.Config(
        app,
        http=BoundedConnection,
        log_config=None,
        log_level=None if debug else "error",  # below it stands what any peer can make it say
        access_log=debug,
        backlog=room.backlog,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    uvicorn.Server(settings).run(sockets=[arguments.fd])


if __name__ == "__main__":
    sys.exit(main())
