"""One format for all processes, on stderr."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

LOG_SOMETHING = """
import logging, sys, warnings
from lmcache_mp.logging import configure, init_logger
configure({level!r}, {fmt!r}, "engine")
log = init_logger("lmcache_mp.somewhere")
{body}
"""


def logged(body: str, fmt: str = "text", level: str = "info") -> list[str]:
    """The lines on stderr of a process that runs `body`; stdout stays empty."""
    code = LOG_SOMETHING.format(level=level, fmt=fmt, body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def objects(body: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(body, "json")]


def test_a_text_line_has_time_level_process_logger_and_message() -> None:
    (line,) = logged("log.info('engine ready epoch=%d', 7)")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    engine lmcache_mp\.somewhere:"
        r" engine ready epoch=7",
        line,
    )


def test_a_json_line_is_an_object_with_the_same() -> None:
    (line,) = objects("log.warning('no room for %s', 'a chunk')")
    assert line["level"] == "warning"
    assert line["process"] == "engine"
    assert line["logger"] == "lmcache_mp.somewhere"
    assert line["message"] == "no room for a chunk"
    assert isinstance(line["pid"], int)
    assert line["time"].endswith("+00:00")


def test_a_traceback_follows_in_text_and_is_inside_in_json() -> None:
    body = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('it failed')"
    assert logged(body)[-1] == "ZeroDivisionError: division by zero"
    (line,) = objects(body)
    assert line["message"] == "it failed"
    assert line["traceback"].endswith("ZeroDivisionError: division by zero")


def test_a_value_cannot_forge_a_line_of_its_own() -> None:
    (line,) = logged("log.info('hello from %s', 'x\\nERROR all is lost')")
    assert line.endswith("hello from x\\nERROR all is lost")
    assert len(objects("log.info('hello from %s', 'x\\ny')")) == 1


def test_less_severe_lines_are_left_out() -> None:
    body = "log.debug('a'); log.info('b'); log.warning('c'); log.error('d')"
    assert [line[-1] for line in logged(body, level="warning")] == ["c", "d"]
    assert len(logged(body, level="debug")) == 4


def test_uvicorn_and_warnings_flow_through_the_same_format() -> None:
    body = (
        "logging.getLogger('uvicorn.error').error('it speaks')\n"
        "warnings.warn('old', DeprecationWarning)\n"
        "logging.getLogger('uvicorn.access').info('GET /')"
    )
    lines = objects(f"warnings.simplefilter('always')\n{body}")
    assert [line["logger"] for line in lines] == ["uvicorn.error", "py.warnings"]


def test_configuring_twice_logs_once() -> None:
    assert len(logged("configure('info', 'text', 'http'); log.info('once')")) == 1


def test_a_pipe_gets_no_colours() -> None:
    assert "\033" not in logged("log.error('plain')")[0]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("raise RuntimeError('of the process')", "RuntimeError: of the process"),
        (
            "import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
            "ZeroDivisionError: division by zero",
        ),
        (
            "class Bad:\n    def __del__(self):\n        raise KeyError('of a finalizer')\nBad()",
            "KeyError: 'of a finalizer'",
        ),
    ],
)
def test_what_nobody_caught_is_a_line_like_all_others(body: str, fault: str) -> None:
    code = LOG_SOMETHING.format(level="info", fmt="json", body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    (line,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert (line["level"], line["process"]) == ("critical", "engine")
    assert line["traceback"].splitlines()[-1] == fault
