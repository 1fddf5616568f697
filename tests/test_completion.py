"""A Tab completes commands, flags, values and paths."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lmcache_mp import __version__
from tests.terminal import Terminal, terminal

SCRIPTS = sysconfig.get_path("scripts")
BASH = shutil.which("bash") or "bash"


def script(shell: str) -> str:
    command = [sys.executable, "-m", "lmcache_mp", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_a_tab_in_bash_completes_what_then_runs(tmp_path: Path) -> None:
    (tmp_path / "rc").write_text(f"bind 'set bell-style none'; PS1='> '\n{script('bash')}\n")
    (tmp_path / "server.yaml").write_text("drain_s: 7\n")
    command = [BASH, "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"]
    path = f"{SCRIPTS}:{os.environ['PATH']}"
    with terminal(command, PATH=path, HOME=str(tmp_path), INPUTRC="/dev/null") as shell:
        answers(shell, "lmcache-mp --vers\t\n", f"lmcache-mp {__version__}")
        answers(
            shell,
            f"lmcache-mp conf\t --log-le\twarn\t --conf\t{tmp_path}/serv\t | grep '(from'\n",
            "log_level = warning  (from --log-level)",
        )
        shell.shows(f"drain_s = 7.0  (from {tmp_path}/server.yaml)")
        answers(shell, "lmcache-mp comp\tzs\t | head -1\n", "#compdef lmcache-mp")


def answers(shell: Terminal, line: str, answer: str) -> None:
    shell.type(line)
    shell.shows(answer)


def test_zsh_takes_its_script(tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh here")
    (tmp_path / "_lmcache-mp").write_text(script("zsh"))
    subprocess.run([zsh, "-n", tmp_path / "_lmcache-mp"], check=True, timeout=30)


def test_another_shell_is_refused() -> None:
    command = [sys.executable, "-m", "lmcache_mp", "completion", "sh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "'sh'" in done.stderr
