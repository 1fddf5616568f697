"""What is installed, beside what is needed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

import zmq

from lmcache_mp import __version__
from lmcache_mp.doctor.finding import Finding, advice, ok, problem

LIBZMQ_SINCE = (4, 3)
"""Below it the bus cannot refuse what is not well framed (ZAP domain without a handler)."""

_AT_LEAST = re.compile(r"([\w.-]+)>=([\d.]+)")  # each of ours is of this form: pyproject.toml


def python() -> Finding:
    """The interpreter; what is older than we need cannot even read this."""
    return ok("python", f"{sys.version.split()[0]} in {sys.executable}; lmcache-mp {__version__}")


def libzmq(version: str) -> Finding:
    """The C library, which pyzmq may bring along or find."""
    if _numbers(version) < LIBZMQ_SINCE:
        change = "pip install --upgrade --force-reinstall --only-binary :all: pyzmq"
        return problem("libzmq", f"{version}, needed: 4.3", change)
    return ok("libzmq", version)


def installed_libzmq() -> str:
    """What this process would use."""
    return str(zmq.zmq_version())


def packages(distribution: str = "lmcache-mp") -> Iterator[Finding]:
    """Each dependency."""
    try:
        required = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        change = "pip install lmcache-mp: nothing checks its dependencies otherwise"
        yield advice("packages", f"{distribution} runs from a folder, not installed", change)
        return
    for requirement in required:
        if "extra ==" not in requirement and (match := _AT_LEAST.match(requirement)):
            yield package(match[1], match[2])


def package(name: str, least: str) -> Finding:
    """One dependency, which must be `least` or later."""
    change = f"pip install '{name}>={least}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return problem(name, f"not installed, needed: {least}", change)
    if _numbers(version) < _numbers(least):
        return problem(name, f"{version}, needed: {least}", change)
    return ok(name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
