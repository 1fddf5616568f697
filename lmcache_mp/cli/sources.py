"""Where settings come from: flag, then environment, then YAML file, then default."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lmcache_mp.config import Config, ConfigError, settings
from lmcache_mp.process import PARENT_PID_VARIABLE
from lmcache_mp.setting import ENV_PREFIX, Setting

FILE_VARIABLE = ENV_PREFIX + "CONFIG"
TEST_PREFIX = ENV_PREFIX + "TEST_"
"""Of variables that are the test suite's."""
KEY_FILE_VARIABLE = ENV_PREFIX + "KEY_FILE"

# What Kubernetes sets in every pod beside a service called lmcache-mp or lmcache-mp-<something>.
_OF_KUBERNETES = re.compile(
    ENV_PREFIX + r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and for each key where its value came from."""

    config: Config
    sources: dict[str, str]


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Resolved:
    """Merge all sources; raises `ConfigError` for whatever is unknown, ill-typed or out of bounds.

    `flags`: by key, as text or lists of text (switches: bool); None is a flag that was not given.
    `config` among them names the YAML file.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    file = given.pop("config", None) or environment.get(FILE_VARIABLE)
    values: dict[str, Any] = {}
    sources = {setting.key: "default" for setting in settings()}
    layers = [_from_environment(environment), _from_flags(given)]
    if file:
        layers.insert(0, _from_file(Path(file)))
    for layer in layers:
        for setting, value, source, is_text in layer:
            values[setting.key] = setting.read(value, source, from_text=is_text)
            sources[setting.key] = source
    return Resolved(Config(**values), sources)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that nobody knows: what was probably meant."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


Layer = list[tuple[Setting, Any, str, bool]]


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    return [(s, flags[s.key], s.flag, True) for s in settings() if s.key in flags]


def _from_environment(environment: Mapping[str, str]) -> Layer:
    """Lists are separated by commas, or JSON; an empty variable counts as not set."""
    by_name = {setting.env: setting for setting in settings()}
    known = {FILE_VARIABLE, KEY_FILE_VARIABLE, PARENT_PID_VARIABLE, *by_name}
    layer: Layer = []
    for name, text in environment.items():
        if not name.startswith(ENV_PREFIX) or not text:
            continue
        if name not in known:
            if _OF_KUBERNETES.fullmatch(name) or name.startswith(TEST_PREFIX):
                continue
            raise ConfigError(
                f"unknown environment variable {name}: {nearest(name, sorted(known))}"
            )
        if (setting := by_name.get(name)) is not None:
            layer.append((setting, _listed(text) if setting.is_list else text, name, True))
    return layer


def _listed(text: str) -> list[Any]:
    """The items of a list: `a, b`, or a mapping or a list of them as JSON."""
    if text.lstrip()[0] in "[{":
        with contextlib.suppress(msgspec.DecodeError):
            value = msgspec.json.decode(text)
            return value if isinstance(value, list) else [value]
    return [part.strip() for part in text.split(",")]


def _from_file(path: Path) -> Layer:
    import yaml  # most commands read none

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as fault:
        raise ConfigError(f"config file {path} cannot be read: {fault.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        raise ConfigError(
            f"config file {path} is not YAML: {' '.join(str(fault).split())}"
        ) from None
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(
            f"config file {path}: expected keys and values, found a {type(content).__name__}"
        )
    by_key = {setting.key: setting for setting in settings()}
    layer: Layer = []
    for key, value in content.items():
        if key not in by_key:
            raise ConfigError(f"unknown key {key!r} in {path}: {nearest(str(key), by_key)}")
        layer.append((by_key[key], value, str(path), False))
    return layer
