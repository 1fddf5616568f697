"""One log for all processes: standard `logging`, to stderr, each line naming its process.

    log = init_logger(__name__)
    log.info("engine ready epoch=%d l1=%s", epoch, size)

A message is a lowercase event, then its values: as `key=value`, or in a sentence if people need
one to act on it. With `json` a line is one object, with the traceback inside; what nobody caught
is logged like everything else. Only what the interpreter says while it cannot log (the stacks of
`faulthandler`, a fault before `configure`) is plain text.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

from typing_extensions import override

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31;1m"}
_DIM, _PLAIN = "\033[2m", "\033[0m"
_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "py.warnings")  # may bring handlers


def init_logger(name: str) -> logging.Logger:
    """The logger of a module; `configure` decides where it goes and what it lets through."""
    return logging.getLogger(name)


def configure(level: Level, fmt: Format, process: str) -> None:
    """Send every log line of this process to stderr; `process` is its name in each of them.

    uvicorn must be given `log_config=None`; its access log then shows at level debug.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(process) if fmt == "json" else TextFormatter(process, _coloured(sys.stderr))
    )
    logging.captureWarnings(True)
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").setLevel("DEBUG" if level == "debug" else "WARNING")
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_untold
    sys.unraisablehook = _log_untold


class TextFormatter(logging.Formatter):
    """`2026-01-31 09:30:00.123 INFO    engine lmcache_mp.engine.loop: engine ready epoch=7`."""

    def __init__(self, process: str, coloured: bool) -> None:
        super().__init__()
        self._process = process
        self._coloured = coloured

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        level = f"{record.levelname:<7}"
        where = f"{self._process} {record.name}:"
        # what others wrote into a value must not look like a line of its own
        message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        if self._coloured:
            colour = _COLOURS.get(record.levelname, "")
            return f"{_DIM}{time}{_PLAIN} {colour}{level}{_PLAIN} {_DIM}{where}{_PLAIN} {message}"
        return f"{time} {level} {where} {message}"


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, process, pid, logger, message and, if any, traceback."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


def _log_uncaught(
    kind: type[BaseException], fault: BaseException, traceback: TracebackType | None
) -> None:
    """As the interpreter would print it, in the format of all lines."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, fault, traceback)
        return
    name = kind.__name__
    init_logger("uncaught").critical("uncaught %s", name, exc_info=(kind, fault, traceback))


def _log_untold(told: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    """The same for a thread, and for a finalizer. A thread may end by SystemExit."""
    if told.exc_value is not None and not isinstance(told.exc_value, SystemExit):
        _log_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")
