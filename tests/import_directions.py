"""`python -m tests.import_directions`: imports point one way, or this says where they do not.

bus <- lmcache_mp <- http_apis; lmcache_mp.integration and lmcache_mp.frontend are leaves.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LAYERS = ("bus", "lmcache_mp", "http_apis")
LEAVES = ("lmcache_mp.integration", "lmcache_mp.frontend")
CLIENT_MAY_NOT_IMPORT = ("torch", "numpy", "fastapi", "uvicorn", "yaml", "rich")
CLIENT = ("lmcache_mp.client", "lmcache_mp.keys", "lmcache_mp.messages", "lmcache_mp.namespace")


def imported(source: str) -> Iterator[tuple[int, str]]:
    """`(line, module)` of everything a module imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def faults_of(module: str, source: str) -> Iterator[str]:
    """Every import of `module` that points the wrong way."""
    own_leaf = next((leaf for leaf in LEAVES if within(module, leaf)), None)
    own_layer = LAYERS.index(module.partition(".")[0])
    above = LAYERS[own_layer + 1 :] if own_leaf is None else ()
    in_client = any(within(module, part) for part in CLIENT)
    for line, name in imported(source):
        for layer in above:
            if within(name, layer):
                yield f"{module}:{line} imports {name}: {layer} is above it"
        for leaf in LEAVES:
            if within(name, leaf) and leaf != own_leaf:
                yield f"{module}:{line} imports {name}: nothing may import {leaf}"
        if in_client and name.partition(".")[0] in CLIENT_MAY_NOT_IMPORT:
            yield f"{module}:{line} imports {name}: clients must not need it"


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for layer in LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    faults = [f for name, path in modules(root) for f in faults_of(name, path.read_text())]
    print("\n".join(faults) or "imports point one way")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
