"""The pages of the documentation are true: made from the code, or run as they stand."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import bus
from lmcache_mp.cli.commands import COMMANDS
from lmcache_mp.cli.configuration_page import configuration_page
from lmcache_mp.client import CacheClient
from lmcache_mp.messages import Status
from tests.waiting import wait_until
from tests.world import NAMESPACE, short_directory, unique_name

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def blocks(language: str) -> list[str]:
    """The fenced blocks of extending.md in a language, in order."""
    text = (DOCS / "extending.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def patch(tree: Path, diff: str) -> None:
    """Apply a diff whose hunks have no line numbers: each must fit in exactly one place."""
    name, *hunks = re.split(r"^@@\n", diff, flags=re.MULTILINE)
    path = tree / name.strip().removeprefix("--- ")
    text = path.read_text()
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        assert text.count(before) == 1, f"{path.name} has not one place for:\n{before}"
        text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
    path.write_text(text)


class Extended:
    """A server that runs a copy of the source with all that extending.md adds."""

    def __init__(self, directory: Path) -> None:
        self._tree = directory / "tree"
        for package in ("bus", "lmcache_mp", "http_apis"):
            shutil.copytree(
                ROOT / package, self._tree / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        for diff in blocks("diff"):
            patch(self._tree, diff)
        apis = directory / "apis"
        apis.mkdir()
        (apis / "chunks_api.py").write_text(blocks("python")[0])
        self.run_dir = directory / "lmcache-mp" / "default"
        self.address = f"ipc://{self.run_dir}/bus.sock"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(self._tree),
            "XDG_RUNTIME_DIR": str(directory),
        }
        command = [sys.executable, "-P", "-m", "lmcache_mp", "serve", "--name", unique_name()]
        command += ["--run-dir", str(self.run_dir), "--l1-size", "1MiB", "--http-port", "0"]
        command += ["--http-api-dir", str(apis), "--eviction-policy", "mru"]
        self.process = subprocess.Popen(command, env=self._environment)

    def http(self) -> str | None:
        """Its address, once the server has its memory."""
        assert self.process.poll() is None
        with contextlib.suppress(bus.Unavailable), bus.Client(self.address) as client:
            report = client.call(Status())
            if report.l1.populated_bytes == report.l1.capacity_bytes and "http" in report.processes:
                return report.processes["http"].address
        return None

    def client(self) -> CacheClient:
        return CacheClient.connect(self.address, NAMESPACE, fail_open=False, timeout_s=10)

    def python(self, code: str) -> str:
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0


def test_configuration_is_made_from_the_settings() -> None:
    assert (DOCS / "configuration.md").read_text() == configuration_page(), (
        "run `lmcache-mp config --markdown > docs/configuration.md`"
    )


def test_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"| `lmcache-mp {name}" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith("http"):
            continue
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}
            assert anchor[1:] in slugs, f"{page.name} links to {target}{anchor}"


def test_what_extending_adds_works_as_it_stands() -> None:
    with short_directory() as directory:
        server = Extended(directory)
        with contextlib.ExitStack() as at_end:
            at_end.callback(server.stop)
            address = wait_until(server.http)
            assert address is not None
            with server.client() as cache:
                prompts = [cache.chunk_keys(range(at, at + 16)) for at in range(0, 500, 100)]
                for prompt in prompts:  # 20 chunks, room for 16
                    with cache.store(prompt) as batch:
                        assert len(list(batch.slots())) == 4
                hits = [cache.lookup(prompt).hit_chunks for prompt in prompts]
                assert hits == [4, 4, 4, 0, 4], "the most recent one made room"
            with httpx.Client(base_url=address, trust_env=False) as http:
                wait_until(lambda: http.get("/healthcheck").status_code == 200)
                assert http.get("/chunks").json() == {NAMESPACE.model: 16}
            assert server.python(blocks("python")[1]) == f"{NAMESPACE.model} 16\n"
