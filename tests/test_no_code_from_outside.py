"""Nothing that comes from outside is ever run: no pickle, no eval, no shell, no unsafe YAML.

A walk over the source; what it finds must be in `ALLOWED`, with the reason why it may stay.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bus", "lmcache_mp", "http_apis")

ALLOWED = {
    ("http_apis/discovery.py", "importlib.import_module"): "names of this package's own modules",
    ("http_apis/discovery.py", "spec_from_file_location"): "files in the operator's directories",
    ("http_apis/discovery.py", "exec_module"): "the same files",
    (
        "lmcache_mp/tiering/spec.py",
        "importlib.import_module",
    ): "an installed module, by the operator",
    ("lmcache_mp/cli/__init__.py", "importlib.import_module"): "a name of the table COMMANDS",
}
"""`(file, construct)`: why it runs nothing that anybody else has sent."""

UNPICKLERS = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal"),
    *("multiprocessing", "shelve"),  # both pickle underneath
}
RUNNERS = {"code", "codeop", "runpy"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "logging.config.listen"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
}
METHODS = {"recv_pyobj", "send_pyobj", "exec_module", "load_module", "spec_from_file_location"}
"""Whatever they are called on: the name alone says it."""
BY_NAME = {"importlib.import_module", "importlib.__import__", "pkgutil.resolve_name"}
"""Harmless when called with a literal, which is an import like any other."""
SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}


def constructs(source: str) -> Iterator[tuple[int, str]]:
    """`(line, construct)` of all that could run what somebody else wrote."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    harmless = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    }
    for node in ast.walk(tree):
        for construct in _in_node(node, aliases):
            if not (construct in BY_NAME and id(node) in harmless):
                yield getattr(node, "lineno", 0), construct


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What each imported name stands for: `from os import system as s` is s: os.system."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield alias.asname or top, alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _in_node(node: ast.AST, aliases: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in named or [alias.name for alias in node.names]:
            if name.partition(".")[0] in UNPICKLERS | RUNNERS:
                yield f"import {name}"
    elif isinstance(node, ast.Name | ast.Attribute):
        name = _full_name(node, aliases)
        last = name.rpartition(".")[2]
        if name in BUILT_IN or name.removeprefix("builtins.") in BUILT_IN:
            yield last
        elif name in ATTRIBUTES | BY_NAME:
            yield name
        elif last in METHODS:
            yield last
    elif isinstance(node, ast.Call):
        yield from _in_call(node, _full_name(node.func, aliases))


def _in_call(call: ast.Call, name: str) -> Iterator[str]:
    if name in ("yaml.load", "yaml.load_all", "yaml.Loader", "yaml.UnsafeLoader"):
        loaders = [*call.args[1:], *(word.value for word in call.keywords if word.arg == "Loader")]
        if not loaders or _last_name(loaders[0]) not in SAFE_LOADERS:
            yield name
    for word in call.keywords:
        said = word.value
        if word.arg == "shell" and not (isinstance(said, ast.Constant) and said.value is False):
            yield "shell=True"
        if word.arg == "allow_pickle":
            yield "allow_pickle"


def _full_name(node: ast.AST, aliases: dict[str, str]) -> str:
    """`a.b.c` with `a` as it was imported; of what is no name only its attributes."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, aliases)}.{node.attr}"
    return ""


def _last_name(node: ast.AST) -> str:
    return _full_name(node, {}).rpartition(".")[2]


def test_nothing_runs_what_comes_from_outside() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), construct): line
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, construct in constructs(path.read_text())
    }
    forbidden = [
        f"{f}:{line} {what}" for (f, what), line in found.items() if (f, what) not in ALLOWED
    ]
    assert forbidden == []
    assert [place for place in ALLOWED if place not in found] == [], "no longer there: strike it"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", "import pickle"),
        ("import pickle as p", "import pickle"),
        ("from pickle import loads", "import pickle"),
        ("def f():\n    import dill", "import dill"),
        ("import multiprocessing.connection", "import multiprocessing.connection"),
        ("from multiprocessing import shared_memory", "import multiprocessing"),
        *((f"import {name}", f"import {name}") for name in sorted(UNPICKLERS | RUNNERS)),
        ("eval(text)", "eval"),
        ("run = exec", "exec"),
        ("compile(text, '', 'exec')", "compile"),
        ("import builtins\nbuiltins.eval(text)", "eval"),
        ("from builtins import exec as run\nrun(text)", "exec"),
        ("__import__(name)", "__import__"),
        ("import os\nos.system(text)", "os.system"),
        ("from os import popen as p\np(text)", "os.popen"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "shell=True"),
        ("from subprocess import Popen\nPopen(text, shell=flag)", "shell=True"),
        ("import subprocess as s\ns.getoutput(text)", "subprocess.getoutput"),
        ("import asyncio\nasyncio.create_subprocess_shell(x)", "asyncio.create_subprocess_shell"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
        ("import yaml\nyaml.load(text, yaml.Loader)", "yaml.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.FullLoader)", "yaml.load"),
        ("from yaml import load\nload(text, Loader=chosen)", "yaml.load"),
        ("import yaml\nyaml.load_all(text, yaml.UnsafeLoader)", "yaml.load_all"),
        ("import yaml\nyaml.unsafe_load(text)", "yaml.unsafe_load"),
        ("import yaml as y\ny.full_load(text)", "yaml.full_load"),
        ("import importlib\nimportlib.import_module(name)", "importlib.import_module"),
        ("from importlib import import_module\nimport_module(f'a.{b}')", "importlib.import_module"),
        ("import importlib\nf = partial(importlib.import_module, n)", "importlib.import_module"),
        ("import pkgutil\npkgutil.resolve_name(name)", "pkgutil.resolve_name"),
        ("spec.loader.exec_module(module)", "exec_module"),
        ("importlib.util.spec_from_file_location(name, path)", "spec_from_file_location"),
        ("socket().recv_pyobj()", "recv_pyobj"),
        ("import numpy\nnumpy.load(path, allow_pickle=flag)", "allow_pickle"),
    ],
)
def test_the_walk_finds(source: str, expected: str) -> None:
    assert expected in {construct for _, construct in constructs(source)}


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile(text)",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.load(text, yaml.CSafeLoader)",
        "import importlib\nimportlib.import_module('bus.wire')",
        "import subprocess\nsubprocess.run([text], shell=False)",
        "import os\nos.execv(path, words)",
        "self.compile(text)",
        "from . import code",
        "import decode",
    ],
)
def test_the_walk_lets_pass(source: str) -> None:
    assert list(constructs(source)) == []
