"""The command line's grammar. Flags for settings are generated from the settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lmcache_mp import __version__
from lmcache_mp.cli.sources import nearest
from lmcache_mp.config import ConfigError, Setting, settings

EVERYTHING = tuple(setting.key for setting in settings())
WHICH_SERVER = ("name", "run_dir")
AS_JSON = "print JSON, for programs"

COMMANDS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "serve": ("run a server in the foreground", EVERYTHING, False),
    "status": ("show what a server holds and who uses it", WHICH_SERVER, True),
    "clear": ("forget every chunk in L1; what is leased stays readable", WHICH_SERVER, False),
    "config": ("list every setting: value, default, bounds, meaning", EVERYTHING, True),
    "check": ("let a server compare its records, index and leases", WHICH_SERVER, False),
    "purge": ("remove what a stopped server left behind", (*WHICH_SERVER, "l1_dir"), False),
}
"""What a command is for, the settings that it has flags for, whether it takes `--json`."""


def parse(argv: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """`(command, its options, settings given as flags)`; what is unknown raises `ConfigError`.

    A flag's value stays text: `lmcache_mp.cli.sources` reads it as it reads every other source.
    """
    parser, commands = _parsers()
    arguments, unknown = parser.parse_known_args(argv)
    given = vars(arguments)
    command = given.pop("command")
    if unknown:
        word = unknown[0].partition("=")[0]
        known = [flag for flag in commands[command]._option_string_actions if flag[:2] == "--"]
        raise ConfigError(f"unknown argument {word!r} of {command}: {nearest(word, known)}")
    options = {"json": given.pop("json")} if "json" in given else {}
    return command, options, given


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="lmcache-mp",
        description="A KV-cache server for LLM inference engines.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lmcache-mp {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {}
    for command, (purpose, keys, with_json) in COMMANDS.items():
        commands[command] = subparsers.add_parser(
            command, help=purpose, description=purpose, allow_abbrev=False
        )
        _add_settings(commands[command], keys)
        if with_json:
            commands[command].add_argument("--json", action="store_true", help=AS_JSON)
    return parser, commands


def _add_settings(parser: argparse.ArgumentParser, keys: tuple[str, ...]) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    for setting in settings():
        if setting.key in keys:
            _add_setting(parser, setting)


def _add_setting(parser: argparse.ArgumentParser, setting: Setting) -> None:
    text = f"{setting.description} [default: {setting.default_text}]".replace("%", "%%")
    if setting.is_switch:
        action = argparse.BooleanOptionalAction
        parser.add_argument(setting.flag, default=None, action=action, help=text)
    elif setting.is_list:
        text = f"{text} [repeatable]"
        parser.add_argument(setting.flag, action="append", metavar=setting.metavar, help=text)
    else:
        parser.add_argument(setting.flag, metavar=setting.metavar, help=text)
