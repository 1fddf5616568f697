"""What people write for an L2 adapter: a mapping with its type, its common and its own settings.

{"type": "fs", "path": "/kv", "cascade": "evict"}
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from typing_extensions import override

from lmcache_mp import l2
from lmcache_mp.redaction import without_secrets
from lmcache_mp.setting import from_plain
from lmcache_mp.units import Size

_EXPECTED = 'expected a mapping such as {"type": "fs", "path": "/kv"}'


class BadAdapter(ValueError):
    """An adapter that cannot be meant; the sentence says what is wrong with it."""


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What every adapter can be told, beside the settings of its type."""

    type: Annotated[str, Meta(min_length=1, max_length=200)]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")] = ""
    """Of this instance; unset: its type, with a number if there are several."""
    cascade: Literal["commit", "evict", "never"] = "commit"
    """When chunks go from L1 to it: as soon as they are whole, before they are evicted, or not."""
    queue: Size = Size("1GiB")
    """Bytes of chunks that may wait for it; further ones are not cascaded, and counted."""
    load_threads: Annotated[int, Meta(ge=1, le=64)] = 4
    store_threads: Annotated[int, Meta(ge=1, le=64)] = 4
    deadline_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """For one object; a worker whose adapter takes longer is ended and started again."""
    retries: Annotated[int, Meta(ge=0, le=10)] = 2


class AdapterSpec:
    """A valid adapter. Made from a mapping, or from its JSON; equal to what means the same."""

    __slots__ = ("common", "config", "mapping")

    def __init__(self, value: AdapterSpec | Mapping[str, Any] | str) -> None:
        """Raises `BadAdapter`, whose sentence holds no secret."""
        self.mapping = _mapping(value)
        common_fields = {key for key in self.mapping if key in Common.__struct_fields__}
        self.common = _converted({key: self.mapping[key] for key in common_fields}, Common)
        rest = {key: value for key, value in self.mapping.items() if key not in common_fields}
        self.config = _converted(rest, adapter_module(self.common.type).Config, self.common.type)

    def plain(self) -> dict[str, Any]:
        """As JSON and YAML would have it."""
        return self.mapping

    @property
    def shown(self) -> dict[str, Any]:
        """The mapping, without secrets."""
        shown: dict[str, Any] = without_secrets(self.mapping)
        return shown

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdapterSpec):
            return NotImplemented
        return bool(self.common == other.common and self.config == other.config)

    @override
    def __hash__(self) -> int:
        return hash(self.common)  # a Config may hold what cannot be hashed

    @override
    def __repr__(self) -> str:
        return f"AdapterSpec({self.shown!r})"

    def open(self) -> l2.AnyAdapter:
        """A new adapter; raises `l2.AdapterError`."""
        adapter: l2.AnyAdapter = adapter_module(self.common.type).Adapter(self.config)
        return adapter


def known_types() -> list[str]:
    """The types that are part of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(l2.__path__))


def adapter_module(kind: str) -> Any:
    """The module of a type: one of ours by its name, anybody's by its dotted path.

    Raises `BadAdapter`.
    """
    known = known_types()
    if kind not in known and "." not in kind:
        raise BadAdapter(
            f"unknown type {kind!r}: known are {', '.join(known)}, or the dotted path of a module"
        )
    path = f"{l2.__name__}.{kind}" if kind in known else kind
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as fault:  # whatever it does, it is not this process's fault
        raise BadAdapter(
            f"type {kind!r}: cannot be imported: {type(fault).__name__}: {fault}"
        ) from None
    config = getattr(module, "Config", None)
    adapter: Any = getattr(module, "Adapter", None)
    if not (isinstance(config, type) and issubclass(config, l2.AdapterConfig)):
        raise BadAdapter(f"type {kind!r}: {path} has no Config that is an l2.AdapterConfig")
    if not (isinstance(adapter, type) and issubclass(adapter, l2.Adapter)):
        raise BadAdapter(f"type {kind!r}: {path} has no Adapter that is an l2.Adapter")
    if inspect.isabstract(adapter):
        missing = ", ".join(sorted(adapter.__abstractmethods__))
        raise BadAdapter(f"type {kind!r}: its Adapter lacks {missing}")
    twice = [name for name in config.__struct_fields__ if name in Common.__struct_fields__]
    if twice:
        raise BadAdapter(
            f"type {kind!r}: its Config has {', '.join(twice)}, which every adapter has"
        )
    return module


def _mapping(value: object) -> dict[str, Any]:
    if isinstance(value, AdapterSpec):
        return value.mapping
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
            raise BadAdapter(f"it is no JSON: {fault}; {_EXPECTED}") from None
    if not isinstance(value, Mapping):
        raise BadAdapter(f"it is of type {type(value).__name__}; {_EXPECTED}")
    if not all(isinstance(key, str) for key in value):
        raise BadAdapter(f"one of its keys is no text; {_EXPECTED}")
    if "type" not in value:
        raise BadAdapter(f"no type: known are {', '.join(known_types())}")
    return dict(value)


def _converted(values: dict[str, Any], struct: Any, kind: str = "") -> Any:
    try:
        return msgspec.convert(values, struct, dec_hook=from_plain)
    except msgspec.ValidationError as fault:
        named = f"type {kind!r}: " if kind else ""
        own = ", ".join(struct.__struct_fields__) or "none of its own"
        rest = f"; of every adapter: {', '.join(Common.__struct_fields__)}" if kind else ""
        raise BadAdapter(f"{named}{fault} (its settings: {own}{rest})") from None
