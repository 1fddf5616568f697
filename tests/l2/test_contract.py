"""`check_l2_adapter` passes what keeps the contract, and names the sentence that is broken."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from lmcache_mp import l2
from lmcache_mp.l2 import fault, memory
from lmcache_mp.testing import ContractBroken, check_l2_adapter, promises
from lmcache_mp.tiering.spec import AdapterSpec
from tests.waiting import wait_until

SENTENCES = {
    name: value
    for name, value in vars(promises).items()
    if name.isupper() and isinstance(value, str)
}
CHUNK_BYTES = 256 << 10


def check(kind: type[memory.Adapter], **options: Any) -> None:
    """Check an adapter that is opened for the first time each time."""
    options = {"chunk_bytes": CHUNK_BYTES, "persistent": False, **options}
    check_l2_adapter(lambda: kind(memory.Config()), **options)


def test_every_sentence_that_is_checked_stands_in_the_contract() -> None:
    contract = " ".join(Path(l2.__file__).read_text().split())
    assert len(SENTENCES) > 10
    assert [text for text in SENTENCES.values() if text not in contract] == []


def test_memory_keeps_the_contract() -> None:
    check(memory.Adapter, chunk_bytes=4 << 20)


def test_fault_without_faults_keeps_the_contract() -> None:
    config = fault.Config(of=AdapterSpec({"type": "memory"}), delay_random_s=0.001)
    check_l2_adapter(lambda: fault.Adapter(config), chunk_bytes=CHUNK_BYTES, persistent=False)


class FewAnswers(memory.Adapter):
    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        return super().lookup(keys)[1:]


class SaysYes(memory.Adapter):
    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        return [True] * len(keys)


class ForgetsTheOrder(memory.Adapter):
    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        return sorted(super().lookup(keys))


class RaisesMisses(memory.Adapter):
    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        if (length := super().load(key, parts)) is None:
            raise KeyError(key)
        return length


class MissesAreZero(memory.Adapter):
    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        return super().load(key, parts) or 0


class RaisesAtLength(memory.Adapter):
    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        length = super().load(key, parts)
        if length not in (None, sum(map(len, parts))):
            raise ValueError("another length")
        return length


class TellsThePartsLength(memory.Adapter):
    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        length = super().load(key, parts)
        return None if length is None else min(length, sum(map(len, parts)))


class WritesBeyond(memory.Adapter):
    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        length = super().load(key, parts)
        whole = memoryview(
            parts[-1].obj
        )  # the mapping, as a library may see it that has an address
        if length is not None and length > sum(map(len, parts)):
            whole[-1] = 0
        return length


class LosesALastPart(memory.Adapter):
    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        super().store(key, parts[:2])


class FlipsABit(memory.Adapter):
    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        length = super().load(key, parts)
        if length is not None:
            parts[-1][-1] ^= 1
        return length


class RefusesTheSecond(memory.Adapter):
    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        if self.lookup([key]) == [True]:
            raise FileExistsError(key.hex())
        super().store(key, parts)


class Appends(memory.Adapter):
    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        before = self._objects.get(key, b"")
        super().store(key, (memoryview(before), *parts))


class StoresLater(memory.Adapter):
    """Keeps the parts, and reads them at the first load."""

    def __init__(self, config: memory.Config) -> None:
        super().__init__(config)
        self._late: dict[bytes, Sequence[memoryview]] = {}

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        self._late[key] = parts


class WritesToParts(memory.Adapter):
    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        super().store(key, parts)
        memoryview(parts[0].obj)[4096] ^= 1


class NeedsWritableParts(memory.Adapter):
    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        for part in parts:
            part[0] = part[0]
        super().store(key, parts)


class Torn(memory.Adapter):
    """The first part is visible before the second one."""

    def __init__(self, config: memory.Config) -> None:
        super().__init__(config)
        self._seen = threading.Event()

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        if threading.current_thread() is threading.main_thread():
            super().store(key, parts)
            return
        super().store(key, parts[:1])
        self._seen.wait(0.1)
        super().store(key, parts)

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        length = super().load(key, parts)
        if length == 4096 and threading.current_thread() is not threading.main_thread():
            self._seen.set()
        return length


class Replaces(memory.Adapter):
    """Whoever stores second makes the object vanish for a moment."""

    def __init__(self, config: memory.Config) -> None:
        super().__init__(config)
        self._seen = threading.Event()

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        if self.lookup([key]) == [True]:
            self.delete([key])
            self._seen.clear()
            self._seen.wait(0.1)
        super().store(key, parts)

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        length = super().load(key, parts)
        if length is None and threading.current_thread() is not threading.main_thread():
            self._seen.set()
        return length


class WritesInPlace(memory.Adapter):
    """One file per object, which has its name from the first byte on."""

    def __init__(self, config: memory.Config) -> None:
        super().__init__(config)
        self._directory = tempfile.TemporaryDirectory()

    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        return [os.path.exists(self._path(key)) for key in keys]

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        with open(self._path(key), "wb") as file:
            file.writelines(parts)

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                os.readv(file.fileno(), parts)
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return None

    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(key))

    @override
    def scan(self) -> Iterator[bytes]:
        return (bytes.fromhex(name) for name in os.listdir(self._directory.name))

    @override
    def close(self) -> None:
        self._directory.cleanup()

    def _path(self, key: bytes) -> str:
        return os.path.join(self._directory.name, key.hex())


class OneThread(memory.Adapter):
    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("objects created in a thread can only be used there")
        return super().lookup(keys)


class DeletesOnce(memory.Adapter):
    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._used_bytes -= len(self._objects.pop(key))


class KeepsForEver(memory.Adapter):
    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        pass


class ScansText(memory.Adapter):
    @override
    def scan(self) -> Iterator[bytes]:
        return (key.hex() for key in super().scan())  # type: ignore[misc]


class ScansNothing(memory.Adapter):
    @override
    def scan(self) -> Iterator[bytes]:
        return iter(())


class ScansTheDict(memory.Adapter):
    @override
    def scan(self) -> Iterator[bytes]:
        return iter(self._objects)


class TakesKeysForText(memory.Adapter):
    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        super().store(key.decode().encode(), parts)


class LeavesADescriptor(memory.Adapter):
    def __init__(self, config: memory.Config) -> None:
        super().__init__(config)
        self.pipe = os.pipe()


class LeavesAThread(memory.Adapter):
    def __init__(self, config: memory.Config) -> None:
        super().__init__(config)
        self.let_go = threading.Event()
        threading.Thread(target=self.let_go.wait).start()


class CannotClose(memory.Adapter):
    @override
    def close(self) -> None:
        raise OSError("busy")


class Boasts(memory.Adapter):
    @override
    def figures(self) -> dict[str, int | float]:
        return {"used_bytes": "many"}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("kind", "what", "sentence"),
    [
        (FewAnswers, "lookup of 1 keys gave 0 answers", "LOOKUP"),
        (SaysYes, "lookup of 1 keys said True of one that is not there", "LOOKUP"),
        (ForgetsTheOrder, "lookup of 513 keys said False of one that is there", "LOOKUP"),
        (RaisesMisses, "it raised KeyError", "MISS"),
        (MissesAreZero, "load of a key without an object returned 0, not None", "MISS"),
        (RaisesAtLength, "it raised ValueError('another length')", "OTHER_LENGTH"),
        (TellsThePartsLength, "load of 12288 bytes into 4096 returned 4096", "OTHER_LENGTH"),
        (WritesBeyond, "bytes beyond a part were written", "OTHER_LENGTH"),
        (LosesALastPart, "load returned 16384 for an object of 24576 bytes", "LOAD"),
        (FlipsABit, "load gave other bytes than were stored, from page 0 on", "LOAD"),
        (RefusesTheSecond, "it raised FileExistsError", "STORE"),
        (Appends, "load returned 8192 for an object of 4096 bytes", "LOAD"),
        (StoresLater, "parts were still in use after the call had returned", "LENT"),
        (WritesToParts, "store changed the bytes that it was to keep", "LENT"),
        (NeedsWritableParts, "it raised TypeError('cannot modify read-only memory')", "STORE"),
        (Torn, "load returned 4096 for an object of 69632 bytes", "STORE"),
        (Replaces, "load returned None, though the object was stored", "NEVER_REPLACED or STORE"),
        (WritesInPlace, "load ", "STORE or NEVER_REPLACED"),
        (OneThread, "it raised RuntimeError", "THREADS"),
        (DeletesOnce, "it raised KeyError", "DELETE"),
        (KeepsForEver, "lookup found an object that was deleted", "DELETE"),
        (ScansText, "scan gave '", "SCAN"),
        (ScansNothing, "scan did not give the keys of all objects", "SCAN"),
        (ScansTheDict, "it raised RuntimeError", "SCAN"),
        (TakesKeysForText, "it raised UnicodeDecodeError", "STORE"),
        (LeavesADescriptor, "(threads, descriptors) were (", "CLOSE"),
        (LeavesAThread, "(threads, descriptors) were (", "CLOSE"),
        (CannotClose, "it raised OSError('busy')", "CLOSE"),
        (Boasts, "figures() has 'many' as used_bytes", "FIGURES"),
    ],
)
def test_what_breaks_the_contract_is_named(
    kind: type[memory.Adapter], what: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promises, "PATIENCE_S", 0.5)
    opened: list[memory.Adapter] = []

    def open_adapter() -> memory.Adapter:
        opened.append(kind(memory.Config()))
        return opened[-1]

    with pytest.raises(ContractBroken, match=re.escape(what)) as caught:
        check_l2_adapter(open_adapter, chunk_bytes=CHUNK_BYTES, persistent=False)
    assert any(SENTENCES[name] in str(caught.value) for name in sentence.split(" or "))
    _let_go(opened)


def test_an_adapter_that_forgets_is_not_persistent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "PATIENCE_S", 0.1)
    with pytest.raises(ContractBroken, match="not found after the adapter was closed and opened"):
        check(memory.Adapter, persistent=True)


def test_a_deadlock_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "PATIENCE_S", 0.1)
    monkeypatch.setattr("lmcache_mp.testing.races.PATIENCE_S", 0.1)
    let_go = threading.Event()

    class Deadlocks(memory.Adapter):
        @override
        def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
            if threading.current_thread() is not threading.main_thread():
                let_go.wait()
            super().store(key, parts)

    before = threading.active_count()
    with pytest.raises(ContractBroken, match="6 of 6 threads still wait in it"):
        check(Deadlocks)
    let_go.set()
    wait_until(lambda: threading.active_count() == before)


def _let_go(opened: Sequence[memory.Adapter]) -> None:
    for adapter in opened:
        if isinstance(adapter, WritesInPlace):
            adapter.close()
        if isinstance(adapter, LeavesADescriptor):
            for descriptor in adapter.pipe:
                os.close(descriptor)
        if isinstance(adapter, LeavesAThread):
            adapter.let_go.set()
    gc.collect()
