"""The settings of a server. One field here is the flag, the YAML key, the environment variable,
the default, the check and the help line; nothing else lists them.

A `Config` that exists is valid: within its fields' bounds and consistent. Where values come from
(flags, environment, a file) is the command line's business: `lmcache_mp.cli.sources`. The server's
own processes read what the supervisor saved: `Config.load`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bus import BadAddress, validate_address
from bus.address import is_loopback
from lmcache_mp.l1.order import ORDERS
from lmcache_mp.logging import Format, Level
from lmcache_mp.rundir import RunDir, default_run_dir
from lmcache_mp.setting import ConfigError, Setting, from_plain, plain, settings_of
from lmcache_mp.tiering.roster import roster_of
from lmcache_mp.tiering.spec import AdapterSpec, BadAdapter
from lmcache_mp.units import FORMS, Size

__all__ = ["MIN_L1_SIZE", "Config", "ConfigError", "settings"]

MIN_L1_SIZE = Size("1MiB")
MIN_MESSAGE, MAX_MESSAGE = Size("512KiB"), Size("64MiB")
MIN_ENGINE_MEMORY = Size("256MiB")


@functools.cache
def settings() -> tuple[Setting, ...]:
    """All settings, in the order of the fields."""
    return tuple(settings_of(Config))


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one server runs."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z",
            description="Name of the server; servers of different names run side by side.",
            extra={"form": "1 to 64 of A-Z a-z 0-9 . _ -, the first no dot or dash"},
        ),
    ] = "default"
    run_dir: Annotated[
        str | None,
        Meta(
            description="Directory of the bus socket and the locks. Unset: a directory of that name"
            " below $XDG_RUNTIME_DIR, /run/user/UID, or (root) /var/lib, in lmcache-mp/.",
            extra={"form": "a directory that only this user may write to"},
        ),
    ] = None
    bus: Annotated[
        tuple[str, ...],
        Meta(
            title="ADDRESS",
            description="Further address of the bus, beside the socket in the run directory.",
            extra={"form": "ipc:///path or tcp://host:port"},
        ),
    ] = ()
    bus_insecure_loopback: Annotated[
        bool,
        Meta(
            description="Allow tcp bus addresses on the loopback interface: every user of this host"
            " can then read and write the cache."
        ),
    ] = False
    bus_keys: Annotated[
        str | None,
        Meta(
            title="DIR",
            description="Directory of CURVE keys, as `lmcache-mp keys` makes it: tcp bus addresses"
            " are then encrypted, and open to the clients whose public key is in it.",
            extra={"form": "the path of a directory"},
        ),
    ] = None
    bus_max_message: Annotated[
        Size,
        Meta(
            description="Largest message that the bus takes; a larger one costs the peer its"
            " connection.",
            extra={"form": f"{FORMS}; from {MIN_MESSAGE} to {MAX_MESSAGE}"},
        ),
    ] = Size("1MiB")
    bus_queue_messages: Annotated[
        int,
        Meta(
            ge=128,
            le=65536,
            description="Messages of one peer that wait to be read, and answers that wait for it to"
            " read them; further answers it loses.",
        ),
    ] = 256
    max_connections: Annotated[
        int, Meta(ge=1, le=65536, description="Connections that one client may have.")
    ] = 4096
    max_open_calls: Annotated[
        int,
        Meta(ge=128, le=65536, description="Calls of one peer that may wait for their answer."),
    ] = 1024
    max_leases: Annotated[
        int,
        Meta(ge=1, le=1 << 20, description="Leases and holds that one client may have at a time."),
    ] = 8192
    engine_memory: Annotated[
        Size,
        Meta(
            description="Memory that the engine process may take for itself, L1 not included; it"
            " ends and is restarted, with its L1, rather than take more.",
            extra={"form": f"{FORMS}; at least {MIN_ENGINE_MEMORY}"},
        ),
    ] = Size("4GiB")
    access_group: Annotated[
        str | None,
        Meta(
            title="GROUP",
            description="Group whose members may use the cache too: engines that run as another"
            " user. Unset: only this user.",
            extra={"form": "the name of a group that this user is a member of"},
        ),
    ] = None
    l1_size: Annotated[
        Size | None,
        Meta(
            description="Memory for the cache. Unset: half of what is free in the L1 directory, of"
            " the memory available and of the cgroup's limit.",
            extra={"form": f"{FORMS}; at least {MIN_L1_SIZE}"},
        ),
    ] = None
    l1_dir: Annotated[
        str,
        Meta(
            pattern="^/",
            description="Directory of the L1 files: a tmpfs or hugetlbfs mount.",
            extra={"form": "an absolute path"},
        ),
    ] = "/dev/shm"  # noqa: S108  # where shared memory is on Linux; the engine checks what it finds
    l2: Annotated[
        tuple[AdapterSpec, ...],
        Meta(
            title="ADAPTER",
            description="Adapter of the second tier, below memory; they are asked in their order.",
            extra={"form": 'a mapping such as {"type": "fs", "path": "/kv"}'},
        ),
    ] = ()
    keep_l1: Annotated[
        bool | None,
        Meta(
            description="Keep L1 at a clean stop, for the next start to adopt (upgrades). Unset:"
            " free it at a clean stop, adopt it after a crash. false: neither keep nor adopt."
        ),
    ] = None
    drain_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How long clients may finish what they hold when the server stops.",
        ),
    ] = 10.0
    chunk_tokens: Annotated[
        int,
        Meta(ge=1, le=1 << 20, description="Tokens per chunk, for clients that ask."),
    ] = 256
    eviction_policy: Annotated[
        str,
        Meta(
            pattern=rf"^({'|'.join(ORDERS)})\Z",
            description="Which chunk leaves L1 when another needs its room.",
            extra={"choices": tuple(ORDERS)},
        ),
    ] = "lru"
    http_host: Annotated[
        str,
        Meta(
            min_length=1,
            description="Address that HTTP listens on.",
            extra={"form": "an IP address or a host name"},
        ),
    ] = "127.0.0.1"
    http_port: Annotated[
        int, Meta(ge=0, le=65535, description="Port that HTTP listens on; 0: any free one.")
    ] = 8080
    http_token_file: Annotated[
        str | None,
        Meta(
            title="FILE",
            description="File with the token that HTTP requests which change something must carry,"
            " as `Authorization: Bearer TOKEN`. Unset: they are open on the loopback interface and"
            " refused elsewhere.",
            extra={"form": "the path of a file that only this user may read"},
        ),
    ] = None
    http_allowed_host: Annotated[
        tuple[str, ...],
        Meta(
            title="HOST",
            description="Further name that HTTP may be asked for by, as in the Host header, beside"
            " addresses and `localhost`.",
            extra={"form": "a host name, without port"},
        ),
    ] = ()
    http_api_dir: Annotated[
        tuple[str, ...],
        Meta(
            description="Directory with further *_api.py modules to serve.",
            extra={"form": "the path of a directory"},
        ),
    ] = ()
    log_level: Annotated[Level, Meta(description="The least severe lines to log.")] = "info"
    log_format: Annotated[Format, Meta(description="Lines for people, or JSON lines.")] = "text"

    def __post_init__(self) -> None:
        for setting in settings():
            setting.read(getattr(self, setting.key), "the program")
        if self.l1_size is not None and self.l1_size < MIN_L1_SIZE:
            raise ConfigError(f"l1_size: {self.l1_size} is less than {MIN_L1_SIZE}")
        if not MIN_MESSAGE <= self.bus_max_message <= MAX_MESSAGE:
            raise ConfigError(
                f"bus_max_message: {self.bus_max_message} is not between {MIN_MESSAGE} and"
                f" {MAX_MESSAGE}"
            )
        if self.engine_memory < MIN_ENGINE_MEMORY:
            raise ConfigError(
                f"engine_memory: {self.engine_memory} is less than {MIN_ENGINE_MEMORY}"
            )
        try:
            roster_of(self.l2)
        except BadAdapter as fault:
            raise ConfigError(f"l2: {fault}") from None
        for address in self.bus:
            self._check_address(address)

    def resolved_run_dir(self) -> RunDir:
        """The run directory, absolute; raises `RunDirError` if there is no default one."""
        if self.run_dir is None:
            return default_run_dir(self.name)
        return RunDir(Path(os.path.abspath(os.path.expanduser(self.run_dir))))

    def builtins(self) -> dict[str, Any]:
        """Every key with its value as YAML would spell it."""
        return {setting.key: plain(getattr(self, setting.key)) for setting in settings()}

    def shown(self) -> dict[str, Any]:
        """The same for people: secrets are left out."""
        return {**self.builtins(), "l2": [spec.shown for spec in self.l2]}

    def save(self, run_dir: RunDir) -> None:
        """Write the settings for the server's own processes: 0600, whole or not at all."""
        draft = run_dir.config_file.with_suffix(f".{os.getpid()}")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self.builtins()), indent=2))
            draft.replace(run_dir.config_file)
        except BaseException:  # a full disk
            draft.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, run_dir: RunDir) -> Config:
        """What `save` wrote; raises `ConfigError` if it is not there or was tampered with."""
        try:
            return msgspec.json.decode(
                run_dir.config_file.read_bytes(), type=cls, dec_hook=from_plain
            )
        except (OSError, msgspec.DecodeError) as fault:
            raise ConfigError(f"settings in {run_dir.config_file}: {fault}") from None

    def _check_address(self, address: str) -> None:
        try:
            validate_address(address)
        except BadAddress as fault:
            raise ConfigError(f"bus: {fault}") from None
        if self.bus_keys is not None or address.startswith("ipc://"):
            return
        if not is_loopback(address):
            raise ConfigError(
                f"bus: {address!r} can be reached from other hosts, which requires keys: make some"
                " with `lmcache-mp keys`, and name their directory with bus_keys"
            )
        if not self.bus_insecure_loopback:
            raise ConfigError(
                f"bus: {address!r} would open the cache to every user of this host: use an ipc://"
                " address, set bus_keys, or set bus_insecure_loopback if that is meant"
            )
