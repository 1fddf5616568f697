"""`lmcache-mp keys server DIR`, `lmcache-mp keys client DIR NAME`: who may use a bus over tcp."""

from __future__ import annotations

from pathlib import Path

from lmcache_mp.cli.failure import Failure
from lmcache_mp.cli.sources import Resolved
from lmcache_mp.key_files import KeyDirectory


def run(
    resolved: Resolved,
    *,
    whose: str,
    directory: str,
    client: str | None,
    out: str | None,
    replace: bool,
) -> int:
    """Make key files, and say what is to be done with them."""
    keys = KeyDirectory(Path(directory).expanduser().absolute())
    if whose == "server":
        if client is not None or out is not None:
            raise Failure("`lmcache-mp keys server DIR` takes neither a NAME nor --out", 2)
        keys.make(replace=replace)
        print(f"made the server's keys in {keys.path}")
        print(f"let clients in:   lmcache-mp keys client {keys.path} NAME")
        print(f"serve with them:  lmcache-mp serve --bus-keys {keys.path} --bus tcp://0.0.0.0:PORT")
        return 0
    if client is None:
        raise Failure("a client has a name: `lmcache-mp keys client DIR NAME`", 2)
    file = Path(out or f"{client}.key_secret").expanduser().absolute()
    keys.make_client(client, file, replace=replace)
    print(f"made {file}")
    print(f"move it to the client's machine: CacheClient.connect(..., key_file={file.name!r}),")
    print(f"or for commands --key-file {file.name}, or LMCACHE_MP_KEY_FILE")
    print(f"it is let in while {keys.clients / client}.key is there; no restart is needed")
    return 0
