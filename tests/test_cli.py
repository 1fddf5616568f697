"""`lmcache-mp` as people and init systems use it: real servers, some of their processes killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmcache_mp import __version__
from lmcache_mp.config import settings
from lmcache_mp.messages import ProcessInfo, StatusReport
from lmcache_mp.rundir import L1Files
from tests.world import unique_name

COMMAND = (sys.executable, "-m", "lmcache_mp")
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("LMCACHE_MP_")}

Done = subprocess.CompletedProcess[str]


def run(*words: str, **environment: str) -> Done:
    """One command, to its end."""
    return subprocess.run(
        [*COMMAND, *words], env=CLEAN | environment, capture_output=True, text=True, timeout=30
    )


def refused(done: Done, exit_code: int) -> str:
    """The one sentence on stderr of a command that ended so."""
    assert (done.returncode, done.stdout) == (exit_code, ""), done
    *logged, sentence = done.stderr.splitlines()
    assert all("waiting" in line for line in logged), done.stderr
    assert sentence.startswith("lmcache-mp: ")
    return sentence.removeprefix("lmcache-mp: ")


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """The first true value of `condition`; fails the test after ten seconds without one."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


class Server:
    """A server of its own name, in its own run directory."""

    def __init__(self, *flags: str) -> None:
        self.name = unique_name()
        self.run_dir = Path("/tmp") / f"lmcache-mp-{self.name}"
        self.l1 = L1Files.of("/dev/shm", self.name)
        self.which = ("--name", self.name, "--run-dir", str(self.run_dir))
        self.started: list[subprocess.Popen[bytes]] = []
        self.start(*flags)

    def start(self, *flags: str) -> None:
        """Start it, perhaps again."""
        defaults = ("--http-port", "0", "--l1-size", "16MiB", "--drain-s", "1")
        self.log = Path(f"{self.run_dir}.log{len(self.started)}")
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*COMMAND, "serve", *self.which, *defaults, *flags],
                env=CLEAN,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.process = process
        self.started.append(process)

    def run(self, command: str, *flags: str) -> Done:
        return run(command, *self.which, *flags)

    def status(self) -> StatusReport | None:
        """The report, if the engine answers."""
        done = self.run("status", "--json")
        return msgspec.json.decode(done.stdout, type=StatusReport) if not done.returncode else None

    def ready(self) -> StatusReport:
        """The report, once the engine has its memory and knows its siblings."""

        def all_run() -> StatusReport | None:
            report = self.status()
            if report is None or report.l1.populated_bytes < report.l1.capacity_bytes:
                return None
            running = [p for p in report.processes.values() if p.state == "running"]
            return report if len(running) == 3 else None

        report: StatusReport = eventually(all_run, f"{self.name} runs:\n{self.log.read_text()}")
        return report

    def restarted(self, name: str, pid: int) -> ProcessInfo:
        """The row of a process, once it is another than `pid`."""

        def other() -> ProcessInfo | None:
            report = self.ready()
            return report.processes[name] if report.processes[name].pid != pid else None

        row: ProcessInfo = eventually(other, f"another {name} than {pid}")
        return row

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=10)

    def end(self) -> None:
        """Whatever the test did: nothing of it survives."""
        for process in self.started:
            process.kill()  # its children end with it
            assert process.communicate()[0] == b""  # stdout is for nobody
        eventually(lambda: "runs as" not in self.run("purge").stderr, "its children are gone")
        self.run("purge")
        assert not self.l1.segment.exists()
        assert not self.l1.state.exists()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        for log in self.run_dir.parent.glob(f"{self.run_dir.name}.log*"):
            log.unlink()


Serve = Callable[..., Server]

TEXT_LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ +(supervisor|engine|http) [\w.]+: ."


def provoke_every_process(server: Server) -> None:
    """Let each process say something: uvicorn of what is no HTTP, the others of a death."""
    report = server.ready()
    address = report.processes["http"].address
    with urllib.request.urlopen(address + "/", timeout=10) as answer:
        assert answer.status == 200
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"this is no http\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 400"
    os.kill(report.processes["engine"].pid, signal.SIGKILL)
    server.restarted("engine", report.processes["engine"].pid)
    assert server.stop() == 0


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(*flags: str) -> Server:
        servers.append(Server(*flags))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A new directory whose path leaves room for a socket's name."""
    path = Path("/tmp") / f"lmcache-mp-{uuid.uuid4().hex[:10]}"
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


class TestServe:
    def test_runs_until_sigterm_and_leaves_nothing_of_l1(self, serve: Serve) -> None:
        server = serve()
        report = server.ready()
        assert report.server == server.name
        assert report.processes["supervisor"].pid == server.process.pid
        assert server.l1.segment.exists()
        assert server.stop() == 0
        assert not server.l1.segment.exists()
        assert not server.l1.state.exists()
        log = server.log.read_text()
        assert f"serving name={server.name} run_dir={server.run_dir} bus=ipc://" in log
        assert log.splitlines()[-1].endswith(f"stopped name={server.name}")

    def test_http_answers_at_the_address_that_status_names(self, serve: Serve) -> None:
        address = serve().ready().processes["http"].address
        with urllib.request.urlopen(address + "/", timeout=10) as answer:
            assert json.load(answer)["status"] == "ok"

    def test_two_names_run_side_by_side(self, serve: Serve) -> None:
        reports = [server.ready() for server in (serve(), serve())]
        assert reports[0].l1.path != reports[1].l1.path

    def test_all_processes_log_json_lines_that_name_them(self, serve: Serve) -> None:
        server = serve("--log-format", "json", "--log-level", "debug")
        provoke_every_process(server)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        assert {line["process"] for line in lines} == {"supervisor", "engine", "http"}
        assert {"uvicorn.error", "uvicorn.access"} <= {line["logger"] for line in lines}
        for line in lines:
            if line["logger"].startswith(("lmcache_mp", "http_apis", "bus")):
                assert re.match("[a-z]|L1 ", line["message"]), line

    def test_all_processes_log_text_lines_that_name_them(self, serve: Serve) -> None:
        server = serve("--log-level", "debug")
        provoke_every_process(server)
        for line in server.log.read_text().splitlines():
            assert re.match(TEXT_LINE, line), line

    def test_a_second_server_of_the_same_name_is_refused(self, serve: Serve) -> None:
        server = serve()
        server.ready()
        sentence = refused(server.run("serve", "--http-port", "0"), 2)
        assert sentence == (
            f"server '{server.name}' runs already, as pid {server.process.pid} in"
            f" {server.run_dir}: stop it, or choose another --name"
        )
        server.ready()

    def test_a_port_in_use_is_refused_by_name(self, short_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = run("serve", "--run-dir", str(short_path), "--http-port", port)
        assert refused(done, 2) == (
            f"port {port} on 127.0.0.1 is in use: choose another with --http-port"
        )

    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            (["--http-host", "203.0.113.7"], "cannot listen on port 8080 of 203.0.113.7: "),
            (["--http-host", "no.such.host.invalid"], "--http-host no.such.host.invalid is no"),
            (["--http-api-dir", "/nowhere"], "--http-api-dir /nowhere: there is no such directory"),
            (["--run-dir", "/proc/1/comm/x"], "run directory /proc/1/comm/x cannot be used: Not a"),
            (["--run-dir", "/tmp/" + "x" * 100], "bytes long, a Unix socket's may have 107"),
            (["--l1-sze", "4"], "unknown argument '--l1-sze' of serve: did you mean --l1-size?"),
            (["--l1-size", "lots"], "l1_size from --l1-size: size 'lots': expected a number"),
            (["--config", "/nowhere.yaml"], "config file /nowhere.yaml cannot be read: No such"),
        ],
    )
    def test_what_cannot_be_is_refused_in_a_sentence(
        self, flags: list[str], sentence: str, short_path: Path
    ) -> None:
        done = run("serve", "--run-dir", str(short_path), *flags)
        assert sentence in refused(done, 2)
        assert not (short_path / "config.json").exists()

    def test_a_run_directory_that_others_may_write_to_is_refused(self, short_path: Path) -> None:
        short_path.chmod(0o777)
        sentence = refused(run("serve", "--run-dir", str(short_path)), 2)
        assert sentence.endswith(f"others may write to it: chmod 0700 {short_path}")

    def test_an_l1_larger_than_its_directory_is_refused_before_it_serves(
        self, serve: Serve
    ) -> None:
        server = serve("--l1-size", "900TiB")
        assert server.process.wait(timeout=10) == 2
        assert "900" in server.log.read_text()

    @pytest.mark.parametrize("name", ["engine", "http"])
    def test_a_killed_process_is_restarted_and_status_says_why(
        self, name: str, serve: Serve
    ) -> None:
        server = serve()
        before = server.ready().processes[name]
        os.kill(before.pid, signal.SIGKILL)
        after = server.restarted(name, before.pid)
        assert (after.restarts, after.note) == (1, "was killed by SIGKILL")
        assert after.address == before.address
        assert server.stop() == 0

    def test_a_killed_server_leaves_no_process_and_the_next_one_takes_over(
        self, serve: Serve
    ) -> None:
        server = serve()
        report = server.ready()
        port = report.processes["http"].address.rpartition(":")[2]
        server.process.kill()
        server.process.wait()
        server.start("--http-port", port)  # while its predecessor's processes still end
        successors = server.ready().processes
        assert successors["engine"].restarts == 0
        old = [Path(f"/proc/{report.processes[name].pid}") for name in ("engine", "http")]
        eventually(lambda: not any(path.exists() for path in old), "its predecessor is gone")
        assert server.stop() == 0

    def test_a_kept_l1_is_named_with_the_command_that_frees_it(self, serve: Serve) -> None:
        server = serve("--keep-l1")
        server.ready()
        assert server.stop() == 0
        assert server.l1.segment.exists()
        assert f"purge --name {server.name} --run-dir {server.run_dir}`" in server.log.read_text()
        assert "freed" in server.run("purge").stdout
        assert not server.l1.segment.exists()

    def test_settings_come_from_file_and_environment_too(self, short_path: Path) -> None:
        file = short_path / "server.yaml"
        file.write_text("http_api_dir: [/from-file]\n")
        which = {"LMCACHE_MP_CONFIG": str(file), "LMCACHE_MP_RUN_DIR": str(short_path)}
        assert "/from-file" in refused(run("serve", **which), 2)
        assert "'x'" in refused(run("serve", LMCACHE_MP_HTTP_PORT="x", **which), 2)


class TestStatus:
    def test_shows_people_what_there_is(self, serve: Serve) -> None:
        server = serve()
        server.ready()
        shown = server.run("status").stdout
        for word in (server.name, "ready", "16.0 MiB", "supervisor", "engine", "http://127.0.0.1:"):
            assert word in shown

    @pytest.mark.parametrize("command", ["status", "clear", "check"])
    def test_a_server_that_does_not_run_is_a_sentence(self, command: str, short_path: Path) -> None:
        sentence = refused(run(command, "--run-dir", str(short_path)), 1)
        assert sentence == (
            f"no server 'default' runs in {short_path}: start one with `lmcache-mp serve`"
        )


def test_clear_and_check_of_an_empty_cache(serve: Serve) -> None:
    server = serve()
    server.ready()
    assert server.run("clear").stdout == f"cleared 0 chunks of server '{server.name}'\n"
    checked = server.run("check")
    assert checked.returncode == 0
    assert "no fault" in checked.stdout


class TestPurge:
    def test_refuses_while_the_server_runs(self, serve: Serve) -> None:
        server = serve()
        server.ready()
        sentence = refused(server.run("purge"), 1)
        assert sentence == (
            f"server '{server.name}' runs as pid {server.process.pid} in {server.run_dir}:"
            " stop it first"
        )
        server.ready()

    def test_refuses_a_running_server_whose_run_directory_it_was_not_told(
        self, serve: Serve, short_path: Path
    ) -> None:
        server = serve()
        server.ready()
        done = run("purge", "--name", server.name, "--run-dir", str(short_path))
        assert "in use by a server of this name with another run directory" in refused(done, 1)
        assert server.l1.segment.exists()

    def test_removes_what_a_killed_server_left_and_nothing_else(self, serve: Serve) -> None:
        server = serve()
        engine = server.ready().processes["engine"].pid
        server.process.send_signal(signal.SIGSTOP)  # else it would start another one
        os.kill(engine, signal.SIGKILL)
        server.process.kill()
        server.process.wait()
        foreign = server.run_dir / "notes.txt"
        foreign.write_text("mine")
        purged = eventually(
            lambda: (done := server.run("purge")).returncode == 0 and done.stdout, "http is gone"
        )
        assert purged.startswith("freed 16.0 MiB of L1 in /dev/shm")
        assert foreign.exists()
        assert not (server.run_dir / "config.json").exists()
        assert not (server.run_dir / "bus.sock").exists()
        assert "has left no L1" in server.run("purge").stdout

    def test_of_a_server_that_never_was_says_so(self, short_path: Path) -> None:
        done = run("purge", "--name", "never", "--run-dir", str(short_path / "never"))
        assert done.stdout == "server 'never' has left no L1 in /dev/shm\n"
        assert not (short_path / "never").exists()


class TestConfig:
    def test_lists_every_setting_with_default_form_variable_and_sentence(self) -> None:
        listed = run("config").stdout
        for setting in settings():
            assert f"\n{setting.key} = " in "\n" + listed
            assert f"{setting.flag}, {setting.env}\n" in listed
            assert f"default: {setting.default_text}; value: {setting.form}\n" in listed

    def test_says_where_a_value_comes_from(self) -> None:
        listed = run("config", "--http-port", "1", LMCACHE_MP_L1_SIZE="4096MiB").stdout
        assert "http_port = 1  (from --http-port)" in listed
        assert "l1_size = 4GiB  (from LMCACHE_MP_L1_SIZE)" in listed

    def test_is_json_for_programs(self) -> None:
        rows = json.loads(run("config", "--json", "--no-keep-l1").stdout)
        assert [row["key"] for row in rows] == [setting.key for setting in settings()]
        (keep_l1,) = (row for row in rows if row["key"] == "keep_l1")
        assert (keep_l1["value"], keep_l1["default"]) == (False, None)


def test_version() -> None:
    assert run("--version").stdout == f"lmcache-mp {__version__}\n"


def test_a_command_that_does_not_exist_is_refused() -> None:
    done = run("sreve")
    assert done.returncode == 2
    assert "'sreve'" in done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = f"{' '.join(COMMAND)} config | head -1"
    done = subprocess.run(code, shell=True, env=CLEAN, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("name = default\n", "")


def test_the_command_line_imports_no_web_framework() -> None:
    heavy = {"fastapi", "uvicorn", "torch", "numpy", "rich"}
    code = f"import sys, lmcache_mp.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "set()\n"
