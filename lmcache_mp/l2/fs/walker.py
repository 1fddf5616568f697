"""Goes through the directory, over and over, and tells the catalogue what it finds.

The first time at full speed, for the catalogue is empty; then once a minute, a directory at a time,
for what other servers added or removed. What a dead writer left unfinished is removed on the way.
Nothing else that is not an object is touched.
"""

from __future__ import annotations

import os
import threading

from lmcache_mp.l2.fs.directory import Directory
from lmcache_mp.l2.fs.names import FAN_OUT, is_aside, key_of, object_path
from lmcache_mp.l2.fs.room import Room
from lmcache_mp.logging import init_logger

PASS_S = 60.0
ABANDONED_S = 7200.0
"""How old an unfinished file must be if nobody here can tell whether its writer lives: twice the
longest deadline of a store. Were it alive all the same, its store would fail and be repeated."""

_TRIM_BYTES = 64 << 20

log = init_logger(__name__)


class Walker:
    """A thread that ends with `close()`."""

    def __init__(self, directory: Directory, room: Room) -> None:
        self.scanned = False
        """Whether all was seen once."""
        self._directory = directory
        self._room = room
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"walk {directory.path}")
        self._thread.daemon = True  # a directory that hangs does not keep its process alive
        self._thread.start()

    def close(self) -> None:
        """Wait for its end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stop.is_set():
            whole = True
            for first in range(len(FAN_OUT)):
                if self._stop.wait(pause_s):
                    return
                whole &= self._told(first)
            self.scanned |= whole
            pause_s = PASS_S / len(FAN_OUT)
            if self.scanned:
                self._trim()

    def _told(self, first: int) -> bool:
        """Whether a directory could be looked through."""
        try:
            self._look_through(first)
        except OSError as fault:
            log.warning("%s/%s: %s", self._directory.path, FAN_OUT[first], fault.strerror)
            return False
        return True

    def _look_through(self, first: int) -> None:
        unseen = self._room.known(first)
        with self._directory.entries(first) as entries:
            for entry in entries:
                if self._stop.is_set():
                    return
                key = key_of(entry.name, first)
                if key in unseen:
                    unseen.discard(key)
                elif entry.is_file(follow_symlinks=False):
                    self._look_at(entry, first, key)
        for key in unseen:  # written after the listing began, or gone
            if self._directory.length(object_path(key)) is None:
                self._room.forget(key)

    def _look_at(self, entry: os.DirEntry[str], first: int, key: bytes | None) -> None:
        if key is None and not is_aside(entry.name):
            return
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        if key is not None:
            self._room.found(key, found.st_size, found.st_mtime)
            return
        lives = self._directory.writer.lives(entry.name)
        if lives is None:
            lives = self._directory.now_s() - found.st_mtime < ABANDONED_S
        if not lives:
            self._directory.remove(f"{FAN_OUT[first]}/{entry.name}")

    def _trim(self) -> None:
        """Evict until nothing is too much."""
        try:
            while not self._stop.is_set() and (excess := self._room.excess_bytes()) > 0:
                if self._room.evict(min(excess, _TRIM_BYTES)) == 0:
                    return
        except OSError as fault:
            log.warning("%s: cannot evict: %s", self._directory.path, fault.strerror)
