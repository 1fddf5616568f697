"""Another server on a directory: `python -m tests.l2.fs_process <directory> <verb> <arguments>`.

store <first> <last>   store these numbered objects, then print "done" and wait for stdin's end
evict <first> <last>   the same with room for ten objects
delete <first> <last>  delete them
endless <pages>        store ever new objects until killed
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from tests.l2.fs_world import Chunk, opened, unfinished_files
from tests.waiting import wait_until


def numbered(number: int) -> Chunk:
    return Chunk((number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") * 4)


@contextlib.contextmanager
def other_server(directory: Path, *words: object) -> Generator[subprocess.Popen[str], None, None]:
    """A process that has just been started; it is gone at the end, if need be by kill -9."""
    command = [sys.executable, "-m", "tests.l2.fs_process", str(directory), *map(str, words)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for its "done", and let it go."""
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    process.communicate(timeout=10)
    assert process.returncode == 0


def stop_within_a_write(process: subprocess.Popen[str], directory: Path) -> Path:
    """Send SIGSTOP until it hits between a file's creation and its renaming: that file."""

    def hit() -> list[Path]:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T")
        unfinished = unfinished_files(directory)
        if not unfinished:
            process.send_signal(signal.SIGCONT)
        return unfinished

    (file,) = wait_until(hit)
    return file


def main(directory: str, verb: str, *numbers: str) -> None:
    first, last = (int(number) for number in (*numbers, "0")[:2])
    chunks = [numbered(number) for number in range(first, last)]
    capacity = 10 * chunks[0].size if verb == "evict" else None
    with opened(Path(directory), capacity=capacity) as adapter:
        while verb == "endless":
            chunk = Chunk(pages=first)
            adapter.store(chunk.key, chunk.parts)
        if verb == "delete":
            adapter.delete([chunk.key for chunk in chunks])
        else:
            for chunk in chunks:
                adapter.store(chunk.key, chunk.parts)
        print("done", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
