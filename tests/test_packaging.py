"""What is shipped: built as a release is, installed into an environment of its own, and used there.

The environment borrows the dependencies of the one that runs the tests; the project itself comes
from the wheel alone, which `test_the_project_comes_from_the_wheel` proves.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from lmcache_mp.cli.commands import COMMANDS
from lmcache_mp.messages import StatusReport
from tests.waiting import wait_until
from tests.world import short_directory, unique_name

CHECKOUT = Path(__file__).parent.parent
USES = Path("tests", "typing")
PACKAGES = ("bus", "lmcache_mp", "http_apis")
FIRST_HIT = """
from lmcache_mp.client import CacheClient, Namespace
import sys
namespace = Namespace(model="demo", dtype="uint8", shard_bytes=1 << 16)
with CacheClient.connect(sys.argv[1], namespace, fail_open=False, timeout_s=10) as cache:
    keys = cache.chunk_keys(range(1024))
    with cache.store(keys) as batch:
        for index, view in batch.slots():
            view[:] = bytes([index]) * len(view)
    with cache.retrieve(keys) as hit:
        print([view[0] for _, view in hit.slots()])
"""

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Release:
    wheel: Path
    sdist: Path


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a directory outside the checkout to use it from."""

    bin: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """As a user's shell would have it: nothing of the checkout."""
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home)}

    def run(self, *words: str) -> Done:
        return subprocess.run(
            words,
            cwd=self.home,
            env=self.environment,
            executable=self.bin / words[0],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def succeeds(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done
        return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The wheel is built from the sdist, so that the sdist has all it takes."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, CHECKOUT],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Release(wheel, sdist)


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("home")
    environment = tmp_path_factory.mktemp("venv")
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60
    )
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(release.wheel)],
        check=True,
        timeout=60,
    )
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(environment / "bin", home)


class Server:
    """`lmcache-mp serve` of the installed project."""

    def __init__(self, installed: Installed, run_dir: Path) -> None:
        self.installed = installed
        self.name = unique_name()
        self.address = f"ipc://{run_dir}/bus.sock"
        self.which = ("--name", self.name, "--run-dir", str(run_dir))
        self.log = run_dir.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["lmcache-mp", "serve", *self.which, "--l1-size", "16MiB", "--http-port", "0"],
                cwd=installed.home,
                env=installed.environment,
                executable=installed.bin / "lmcache-mp",
                stderr=log,
            )

    def report(self) -> StatusReport | None:
        """Once all processes run."""
        done = self.installed.run("lmcache-mp", "status", "--json", *self.which)
        if done.returncode:
            assert self.process.poll() is None, self.log.read_text()
            return None
        report = msgspec.json.decode(done.stdout, type=StatusReport)
        states = [process.state for process in report.processes.values()]
        return report if states == ["running"] * 3 else None

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


@pytest.fixture
def server(installed: Installed) -> Iterator[Server]:
    with short_directory() as directory, contextlib.ExitStack() as at_end:
        server = Server(installed, directory / "r")
        at_end.callback(server.end)
        wait_until(server.report)
        yield server


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(release: Release) -> None:
    names = {n for n in zipfile.ZipFile(release.wheel).namelist() if ".dist-info/" not in n}
    sources = {
        str(path.relative_to(CHECKOUT))
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*.py")
    }
    assert names == sources | {f"{package}/py.typed" for package in PACKAGES}


def test_the_sdist_holds_what_it_takes_to_test_it(release: Release) -> None:
    with tarfile.open(release.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml"):
        assert name in names
    for name in ("tests/test_packaging.py", "benchmarks/__init__.py", "docs/configuration.md"):
        assert name in names
    assert not [name for name in names if name.startswith((".ci", ".venv", "dist/"))]


def test_the_project_comes_from_the_wheel(installed: Installed) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})))"
    files = installed.succeeds("python", "-c", code).split()
    assert all(Path(file).is_relative_to(installed.bin.parent) for file in files), files


def test_a_server_and_a_first_hit(server: Server) -> None:
    hit = server.installed.succeeds("python", "-c", FIRST_HIT, server.address)
    assert hit == "[0, 1, 2, 3]\n"
    report = server.report()
    assert report is not None
    with httpx.Client(base_url=report.processes["http"].address, trust_env=False) as http:
        wait_until(lambda: http.get("/healthcheck").status_code == 200)
        assert http.get("/status").json()["l1"]["ready_chunks"] == 4


def test_every_command_runs(server: Server) -> None:
    run, which = server.installed.succeeds, server.which
    shown = {
        "status": run("lmcache-mp", "status", *which),
        "clear": run("lmcache-mp", "clear", *which),
        "check": run("lmcache-mp", "check", *which),
        "config": run("lmcache-mp", "config", *which),
        "doctor": run("lmcache-mp", "doctor", "--l1-size", "16MiB", *which),
        "l2": run("lmcache-mp", "l2", "list", *which),
        "keys": run("lmcache-mp", "keys", "server", str(server.log.with_suffix(".keys"))),
        "completion": run("lmcache-mp", "completion", "bash"),
    }
    assert server.name in shown["status"]
    assert server.name in shown["clear"]
    assert "no fault" in shown["check"]
    assert f"name = {server.name}" in shown["config"]
    assert f"'{server.name}' " in shown["doctor"]
    assert "has no L2 adapter" in shown["l2"]
    assert "made the server's keys" in shown["keys"]
    assert "complete " in shown["completion"]
    page = run("lmcache-mp", "config", "--markdown")
    assert page == (CHECKOUT / "docs" / "configuration.md").read_text()
    server.end()
    assert server.process.returncode == 0
    shown["serve"] = server.log.read_text()
    assert f"stopped name={server.name}" in shown["serve"]
    shown["purge"] = run("lmcache-mp", "purge", *which)
    assert "has left no L1" in shown["purge"]
    assert shown.keys() == COMMANDS.keys()


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_agree_on_the_public_api(checker: str, installed: Installed) -> None:
    """Outside the checkout they see what py.typed of the installed packages lets them see."""
    shutil.copytree(CHECKOUT / "tests" / "typing", installed.home / USES, dirs_exist_ok=True)
    (installed.home / USES.parent / "__init__.py").touch()
    shutil.copy(CHECKOUT / "pyproject.toml", installed.home)  # how strictly they are to look
    python = str(installed.bin / "python")
    command = {
        "mypy": ["mypy", "--python-executable", python, str(USES)],
        "pyright": ["pyright", "--pythonpath", python],
    }[checker]
    checked = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=installed.home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(installed.home),
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # else it asks the network for a newer one
        },
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"no issues found|0 errors", checked.stdout)
