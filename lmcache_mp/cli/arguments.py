"""The command line's grammar. Flags for settings are generated from the settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lmcache_mp import __version__
from lmcache_mp.cli.commands import COMMANDS, Option
from lmcache_mp.cli.sources import nearest
from lmcache_mp.config import ConfigError, settings
from lmcache_mp.setting import Setting


def parse(argv: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """`(command, its options, settings given as flags)`; what is unknown raises `ConfigError`.

    A flag's value stays text: `lmcache_mp.cli.sources` reads it as it reads every other source.
    """
    parser, commands = parsers()
    arguments, unknown = parser.parse_known_args(argv)
    given = vars(arguments)
    command = given.pop("command")
    if unknown:
        word = unknown[0].partition("=")[0]
        known = [flag for flag in commands[command]._option_string_actions if flag[:2] == "--"]
        raise ConfigError(f"unknown argument {word!r} of {command}: {nearest(word, known)}")
    options = {option.key: given.pop(option.key) for option in COMMANDS[command].options}
    return command, options, given


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of it all, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="lmcache-mp",
        description="A KV-cache server for LLM inference engines.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lmcache-mp {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    by_name = {}
    for name, command in COMMANDS.items():
        by_name[name] = subparsers.add_parser(
            name, help=command.purpose, description=command.purpose, allow_abbrev=False
        )
        _add_options(by_name[name], command.options)
        if command.keys:
            _add_settings(by_name[name], command.keys)
    return parser, by_name


def _add_options(parser: argparse.ArgumentParser, options: tuple[Option, ...]) -> None:
    formats = [option for option in options if option.is_format]
    one_of = parser.add_mutually_exclusive_group() if formats else parser
    for option in options:
        (one_of if option in formats else parser).add_argument(option.word, **option.grammar)


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
