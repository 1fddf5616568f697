"""A setting: one field of a struct, as all who fill, check or explain it see it.

A field's annotation carries everything: `Meta` its bounds, its description and, in `extra`, the
`form` that replaces the general words for what a value may be, or the `choices` where code knows
them rather than a `Literal`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from lmcache_mp.redaction import without_secrets

ENV_PREFIX = "LMCACHE_MP_"


class ConfigError(ValueError):
    """A setting cannot be what it is; the sentence names it, its value and what is expected."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a value must be, what it means, and by which names it goes."""

    key: str
    type: Any  # the annotation: what msgspec converts to
    shape: msgspec.inspect.Type  # the same, taken apart: without Meta and without None
    optional: bool
    default: Any
    description: str
    form: str
    """What a value may be, in words."""
    choices: tuple[str, ...]
    """What it may be, if that is a closed set."""
    metavar: str

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        """Its environment variable."""
        return ENV_PREFIX + self.key.upper()

    @property
    def is_switch(self) -> bool:
        """Whether it is a yes or a no."""
        return isinstance(self.shape, msgspec.inspect.BoolType)

    @property
    def is_list(self) -> bool:
        """Whether it may be given several times."""
        return isinstance(self.shape, msgspec.inspect.VarTupleType)

    @property
    def default_text(self) -> str:
        """The default as YAML would spell it."""
        return spelled(self.default)

    def read(self, value: Any, source: str, *, from_text: bool = False) -> Any:
        """The value, converted and checked; raises `ConfigError` naming its source.

        `from_text`: flags and the environment know no types, so "8080" may be a number there.
        """
        try:
            return msgspec.convert(value, self.type, strict=not from_text, dec_hook=from_plain)
        except msgspec.ValidationError as fault:
            if fault.__cause__ is not None:  # a sentence of the type's own
                raise ConfigError(f"{self.key} from {source}: {fault}") from None
            raise ConfigError(
                f"{self.key} from {source}: {without_secrets(plain(value))!r}: expected {self.form}"
            ) from None


def spelled(value: Any) -> str:
    """A setting's value as YAML would spell it."""
    word = plain(value)
    if word is None or word == []:
        return "unset"
    return word if isinstance(word, str) else msgspec.json.encode(word).decode()


def settings_of(struct: type[msgspec.Struct]) -> Iterator[Setting]:
    """Every field, in order."""
    hints = {field.name: field.type for field in msgspec.structs.fields(struct)}
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, msgspec.inspect.StructType)
    for field in described.fields:
        meta, shape, optional = _taken_apart(field.type)
        choices = tuple(meta.get("choices", ()))
        if isinstance(shape, msgspec.inspect.LiteralType):
            choices = tuple(str(value) for value in shape.values)
        form = str(meta.get("form") or " or ".join(choices) or _form(shape))
        if isinstance(shape, msgspec.inspect.VarTupleType):
            form = f"a list, each {form}"
        last_word = field.name.rpartition("_")[2].upper()
        yield Setting(
            key=field.name,
            type=hints[field.name],
            shape=shape,
            optional=optional,
            default=field.default,
            description=str(meta.get("description", "")),
            form=form,
            choices=choices,
            metavar=str(meta.get("title") or {"S": "SECONDS"}.get(last_word, last_word)),
        )


def _taken_apart(shape: msgspec.inspect.Type) -> tuple[dict[str, Any], msgspec.inspect.Type, bool]:
    meta: dict[str, Any] = {}
    if isinstance(shape, msgspec.inspect.Metadata):
        meta = {**(shape.extra_json_schema or {}), **(shape.extra or {})}
        shape = shape.type
    if isinstance(shape, msgspec.inspect.UnionType):
        (shape,) = (kind for kind in shape.types if not isinstance(kind, msgspec.inspect.NoneType))
        return meta, shape, True
    return meta, shape, False


def _form(shape: msgspec.inspect.Type) -> str:
    match shape:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=least, le=most):
            return f"a whole number from {least} to {most}"
        case msgspec.inspect.FloatType(ge=least, le=most):
            return f"a number from {least} to {most}"
    raise TypeError(f"say in Meta(extra={{'form': ...}}) what a value of {shape} may be")


def from_plain(kind: type, value: Any) -> Any:
    """What msgspec asks for a type that is not its own: `Size`."""
    return kind(value)


def plain(value: Any) -> Any:
    """A setting's value in the types that YAML and JSON have."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    as_plain = getattr(value, "plain", None)
    return value if as_plain is None else as_plain()
