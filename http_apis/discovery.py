"""Finds API modules: in packages, and in directories outside the tree."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

HOME = "http_apis"
SUFFIX = "_api"


@dataclass(frozen=True, slots=True)
class Found:
    """What may be an API, not yet imported. `load` raises whatever the module raises."""

    name: str
    load: Callable[[], ModuleType]


def discover(
    packages: Iterable[str] = (HOME,), directories: Iterable[Path] = ()
) -> Iterator[Found]:
    """Every module whose name ends in `_api`: packages first, each place in alphabetical order.

    One of a package goes by its name below `http_apis`; one of a directory by its stem or, where
    that is taken, by its path. A directory that cannot be read is found under its own path, and
    fails to load.
    """
    taken = set()
    for found in _in_packages(packages):
        taken.add(found.name)
        yield found
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError as fault:
            yield Found(str(directory), partial(_raise, fault))
            continue
        for path in (directory / name for name in names if name.endswith(f"{SUFFIX}.py")):
            name = path.stem if path.stem not in taken else str(path)
            taken.add(name)
            yield Found(name, partial(_load_file, path))


def _in_packages(packages: Iterable[str]) -> Iterator[Found]:
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name.endswith(SUFFIX):
                full_name = f"{package}.{module.name}"
                load = partial(importlib.import_module, full_name)
                yield Found(full_name.removeprefix(f"{HOME}."), load)


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that equal stems of two directories are two."""
    path = path.resolve()
    digest = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:8]
    name = f"{path.stem}__{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: pydantic and dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _raise(fault: OSError) -> ModuleType:
    raise fault
