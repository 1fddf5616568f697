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

COMMANDS = {
    "serve": Command("run a server in the foreground", EVERYTHING),
    "status": Command("show what a server holds and who uses it", WHICH_SERVER, (JSON, WATCH)),
    "clear": Command("forget every chunk in L1; what is leased stays readable", WHICH_SERVER),
    "config": Command(
        "list every setting: value, default, bounds, meaning", EVERYTHING, (JSON, MARKDOWN)
    ),
    "check": Command("let a server compare its records, index and leases", WHICH_SERVER),
    "doctor": Command(
        "look at what usually goes wrong on a machine, and say what to change", EVERYTHING, (JSON,)
    ),
    "purge": Command("remove what a stopped server left behind", (*WHICH_SERVER, "l1_dir")),
    "completion": Command("print a script that lets a shell complete this", (), (SHELL,)),
}
