"""The commands there are. Each is the module of its name beside this one, with a `run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmcache_mp.config import settings

EVERYTHING = tuple(setting.key for setting in settings())
WHICH_SERVER = ("name", "run_dir")


@dataclass(frozen=True, slots=True)
class Option:
    """What a command is told that is no setting: a keyword argument of its `run`."""

    word: str
    """`--flag`, or the name of a positional argument."""
    grammar: dict[str, Any]
    """As `ArgumentParser.add_argument` takes it."""
    is_format: bool = False
    """Whether it says how to print: of those only one can be given."""

    @property
    def key(self) -> str:
        """Its name in `run`."""
        return self.word.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Command:
    """What it is for, the settings that it has flags for, and its own options."""

    purpose: str
    keys: tuple[str, ...] = ()
    options: tuple[Option, ...] = field(default=())


JSON = Option("--json", {"action": "store_true", "help": "print JSON, for programs"}, True)
MARKDOWN = Option(
    "--markdown",
    {"action": "store_true", "help": "print docs/configuration.md: the defaults, explained"},
    True,
)
WATCH = Option(
    "--watch",
    {
        "nargs": "?",
        "const": "2",
        "metavar": "SECONDS",
        "help": "show it again every so many seconds (2 if not said), with rates, until Ctrl-C",
    },
)
SHELL = Option("shell", {"choices": ("bash", "zsh"), "help": "which shell is to complete"})

ADDRESS = Option(
    "--address",
    {"metavar": "ADDRESS", "help": "ask the server at tcp://host:port, not one of this host"},
)
KEY_FILE = Option(
    "--key-file",
    {
        "metavar": "FILE",
        "help": "this client's key, as `keys client` made it, for an address that requires one"
        " [default: $LMCACHE_MP_KEY_FILE]",
    },
)
ELSEWHERE = (ADDRESS, KEY_FILE)

L2 = (
    Option(
        "verb", {"choices": ("list", "attach", "detach", "clear"), "help": "what is to be done"}
    ),
    Option(
        "adapter",
        {
            "nargs": "?",
            "metavar": "ADAPTER",
            "help": "to attach: a mapping as JSON, as --l2 of serve takes it; else its name",
        },
    ),
)
KEYS = (
    Option("whose", {"choices": ("server", "client"), "help": "whose key is to be made"}),
    Option("directory", {"metavar": "DIR", "help": "the server's directory of keys"}),
    Option("client", {"nargs": "?", "metavar": "NAME", "help": "which client is to be let in"}),
    Option(
        "--out",
        {"metavar": "FILE", "help": "the client's file [default: NAME.key_secret, here]"},
    ),
    Option("--replace", {"action": "store_true", "help": "make new keys in the place of old ones"}),
)

COMMANDS = {
    "serve": Command("run a server in the foreground", EVERYTHING),
    "status": Command(
        "show what a server holds and who uses it", WHICH_SERVER, (JSON, WATCH, *ELSEWHERE)
    ),
    "clear": Command(
        "forget every chunk in L1; what is leased stays readable", WHICH_SERVER, ELSEWHERE
    ),
    "config": Command(
        "list every setting: value, default, bounds, meaning", EVERYTHING, (JSON, MARKDOWN)
    ),
    "check": Command("let a server compare its records, index and leases", WHICH_SERVER, ELSEWHERE),
    "l2": Command(
        "list, attach, detach or clear a server's L2 adapters",
        (*WHICH_SERVER, "drain_s"),
        (*L2, JSON, *ELSEWHERE),
    ),
    "keys": Command("make the keys of a bus over tcp: its server's, its clients'", (), KEYS),
    "doctor": Command(
        "look at what usually goes wrong on a machine, and say what to change", EVERYTHING, (JSON,)
    ),
    "purge": Command("remove what a stopped server left behind", (*WHICH_SERVER, "l1_dir")),
    "completion": Command("print a script that lets a shell complete this", (), (SHELL,)),
}
