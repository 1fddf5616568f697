"""`lmcache-mp config`: every setting, with the value that `serve` would take and from where."""

from __future__ import annotations

import textwrap
from typing import Any

import msgspec

from lmcache_mp.cli.sources import Resolved
from lmcache_mp.config import settings
from lmcache_mp.setting import spelled


def run(resolved: Resolved, *, json: bool, markdown: bool) -> int:
    """List every setting, for people, as JSON, or as the page of the documentation."""
    if markdown:
        from lmcache_mp.cli.configuration_page import configuration_page

        print(configuration_page(), end="")
    elif json:
        print(msgspec.json.format(msgspec.json.encode(rows(resolved)), indent=2).decode())
    else:
        _print(resolved)
    return 0


def rows(resolved: Resolved) -> list[dict[str, Any]]:
    """One object per setting."""
    values = resolved.config.shown()
    defaults = type(resolved.config)().shown()
    return [
        {
            "key": setting.key,
            "value": values[setting.key],
            "source": resolved.sources[setting.key],
            "default": defaults[setting.key],
            "form": setting.form,
            "flag": setting.flag,
            "env": setting.env,
            "description": setting.description,
        }
        for setting in settings()
    ]


def _print(resolved: Resolved) -> None:
    for setting in settings():
        value = spelled(getattr(resolved.config, setting.key))
        source = resolved.sources[setting.key]
        print(f"{setting.key} = {value}" + (f"  (from {source})" if source != "default" else ""))
        print(
            textwrap.fill(setting.description, 96, initial_indent="    ", subsequent_indent="    ")
        )
        print(f"    default: {setting.default_text}; value: {setting.form}")
        print(f"    {setting.flag}, {setting.env}\n")
