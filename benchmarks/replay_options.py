"""The replay's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trace import BLOCK_TOKENS
from lmcache_mp.units import Size

DEFAULT_L1_SIZE = Size("4GiB")


@dataclass(frozen=True, slots=True)
class Options:
    """What to replay, against what, and where to write it down."""

    trace: Path
    clients: int
    requests: int | None
    speed: float | None
    chunk_tokens: int
    chunk_bytes: int
    l1_size: Size | None
    server: str | None
    run_dir: Path | None
    run_id: str | None
    timeout_s: float
    json: Path | None

    @classmethod
    def parse(cls, arguments: Sequence[str] | None, description: str) -> Options:
        """Options from a command line; argparse ends the process over a bad one."""
        parser = _parser(description)
        options = cls(**vars(parser.parse_args(arguments)))
        if options.l1_size is not None and not options.starts_server:
            parser.error("--l1-size is of the server that is started here, not of one that runs")
        return options

    @property
    def starts_server(self) -> bool:
        """Whether the replay brings its own server."""
        return self.server is None and self.run_dir is None


def _parser(description: str) -> argparse.ArgumentParser:
    summary, _, rest = description.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay_trace",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("trace", type=Path, help="a trace file, JSON lines")
    add("--clients", type=_positive, default=2, help="client processes (default: 2)")
    add("--requests", type=_positive, metavar="N", help="only the trace's first N requests")
    add("--speed", type=_factor, metavar="X", help="in trace time, X times as fast")
    add("--chunk-tokens", type=_divisor, default=BLOCK_TOKENS, metavar="N",
        help="tokens per chunk, a divisor of 512 (default: 512, the trace's block)")  # fmt: skip
    add("--chunk-bytes", type=_chunk_bytes, default=256 << 10, metavar="SIZE",
        help="bytes per chunk (default: 256KiB)")  # fmt: skip
    add("--l1-size", type=_size, metavar="SIZE",
        help=f"L1 of the server that is started here (default: {DEFAULT_L1_SIZE})")  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="NAME", help="use a server that runs already")
    where.add_argument("--run-dir", type=Path, metavar="DIR", help="the same, by its run directory")
    add("--run-id", metavar="ID", help="that of an earlier replay: find what it has stored")
    add("--timeout-s", type=_factor, default=10.0, metavar="S",
        help="a call that takes longer fails open, and is counted (default: 10)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="append the JSON line to a file, too")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _factor(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def _divisor(text: str) -> int:
    number = _positive(text)
    if BLOCK_TOKENS % number:
        raise argparse.ArgumentTypeError(f"{number} does not divide {BLOCK_TOKENS}")
    return number


def _size(text: str) -> Size:
    try:
        return Size(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from None


def _chunk_bytes(text: str) -> int:
    size = int(_size(text))
    if not 8 <= size <= 1 << 30:
        raise argparse.ArgumentTypeError(f"a chunk of {size} bytes: expected 8 bytes to 1 GiB")
    return size
