"""What people wrote, without the secrets in it: for status, logs and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SECRET_ENDINGS = ("password", "secret")
"""Fields with such names are secret."""

_USER = re.compile(r"(?<=://)(?:[^/?#\s:@]*:\S*@|[^/?#\s]*@)")
"""Up to the last @, for people who did not escape their password's slashes."""
_NAMED = re.compile(
    r"""(\w*(?:password|secret|token|sig)["']?\s*[=:]\s*)"""
    r"""("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^&\s,}]*)""",
    re.IGNORECASE,
)
"""In a URL's query, and in text that was to be a mapping."""


def without_secrets(value: Any) -> Any:
    """The same mappings, lists and words; what is secret is `***`, as are users in URLs."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(key, str) and key.lower().endswith(SECRET_ENDINGS)
            else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        return _NAMED.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", value))
    return value
