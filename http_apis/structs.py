"""msgspec structs as the typed answers of FastAPI routes.

What a route answers is often what the engine answered, and that is declared once, as a struct, in
`lmcache_mp.messages`. FastAPI speaks pydantic; `Json[S]` tells pydantic how to write an `S` and
what its schema is, so that a route is annotated `-> Json[S]` and /docs shows every field.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


class _StructSchema:
    """Pydantic's view of the struct that it annotates."""

    def __get_pydantic_core_schema__(self, kind: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(
            kind,
            serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
            metadata={"pydantic_js_functions": [lambda *_: json_schema(kind)]},
        )


Json = Annotated[T, _StructSchema()]


def json_schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a struct, whole: without references, it holds wherever it is put."""
    (schema,), definitions = msgspec.json.schema_components((kind,), ref_template="{name}")
    resolved = _resolve(schema, definitions)
    assert isinstance(resolved, dict)
    return resolved


def _resolve(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_resolve(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolve(definitions[schema["$ref"]], definitions)
    return {key: _resolve(value, definitions) for key, value in schema.items()}
