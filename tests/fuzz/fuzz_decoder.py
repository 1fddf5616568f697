"""Coverage-guided fuzzing of decoder and handlers, with atheris.

python -m tests.fuzz.fuzz_decoder -runs=100000 [other options of libFuzzer]
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from bus import wire

CHECK_EVERY = 256
"""Frames between two walks over all of L1."""


def main() -> None:
    """Fuzz until libFuzzer has enough."""
    with atheris.instrument_imports(include=["bus", "lmcache_mp"]):
        fuzz = importlib.import_module("tests.fuzz.inside")
        grammar = importlib.import_module("tests.fuzz.grammar")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        seeds = Path(directory) / "seeds"
        seeds.mkdir()
        thought = grammar.Grammar(seed=1)
        for number in range(500):
            (seeds / str(number)).write_bytes(thought.request()[wire.HEADER.size :])
        with fuzz.inside(Path(directory)) as engine:
            frames = 0

            def one_input(data: bytes) -> None:
                nonlocal frames
                frames += 1
                kind = wire.NOTICE if frames % 16 == 0 else wire.REQUEST
                header = wire.HEADER.pack(wire.MAGIC, wire.PROTOCOL_VERSION, kind, 0, frames, 0)
                code = engine.take(header + data)
                if code == "lease_refused":
                    engine.say_hello()
                if code == "draining":
                    engine.service.draining = False
                if frames % CHECK_EVERY == 0:
                    engine.l1.tick(float(frames))
                    assert engine.faults() == []

            atheris.Setup([*sys.argv, "-max_len=4096", str(seeds)], one_input)
            atheris.Fuzz()


if __name__ == "__main__":
    main()
