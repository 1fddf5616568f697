"""`s3`: a bucket of S3 or of any store that speaks its protocol, of GCS or of Azure.

An object is one object of the store, named by the hex of its key, put in one request: whole or not
at all. The library is the extra `[s3]`. Credentials come from where its environment has them
(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, web identity, container, instance), never from here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from typing_extensions import Buffer, override

from lmcache_mp import l2

KEY_BYTES = 32
_HEADS_AT_A_TIME = 32
_CONNECT_TIMEOUT_S = 5.0
_PIECE_BYTES = 256 << 10  # copied while it is in the processor's cache: faster than at once


class Config(l2.AdapterConfig, frozen=True, kw_only=True):
    """Where."""

    url: Annotated[str, Meta(pattern=r"^(s3|gs|az)://[^/]")]
    """s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix"""
    endpoint: Annotated[str, Meta(pattern=r"^https?://[^/]")] | None = None
    """Of a store that is not the provider's own: http://host:port. Unset: AWS_ENDPOINT_URL."""
    region: Annotated[str, Meta(min_length=1)] | None = None
    """Unset: AWS_REGION, or else us-east-1."""
    ca_file: str | None = None
    """Certificates to trust beside the system's, PEM."""
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 20.0
    """For one request, from connecting to its last byte."""


class Adapter(l2.Adapter[Config]):
    """See the module."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        try:
            import obstore
            from obstore.exceptions import BaseError

            from lmcache_mp.l2.s3 import faults
        except ImportError as fault:
            raise l2.AdapterError(
                f"its library is missing ({fault}): pip install 'lmcache-mp[s3]'", lasting=True
            ) from None
        self._lib, self._faults, self._errors = obstore, faults, (BaseError, OSError)
        self._where = (
            config.url if config.endpoint is None else f"{config.url} at {config.endpoint}"
        )
        with self._explained():
            self._bucket = _opened(config)
            next(iter(obstore.list(self._bucket, chunk_size=1)), None)  # bucket, credentials

    @override
    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
        with self._explained():
            return asyncio.run(self._heads(keys))

    @override
    def store(self, key: bytes, parts: Sequence[memoryview]) -> None:
        with self._explained():
            self._lib.put(self._bucket, key.hex(), parts, use_multipart=False)

    @override
    def load(self, key: bytes, parts: Sequence[memoryview]) -> int | None:
        with self._explained():
            try:
                found = self._lib.get(self._bucket, key.hex())
            except FileNotFoundError as fault:
                if self._faults.no_bucket(fault):
                    raise
                return None
            length = int(found.meta["size"])
            if length == sum(map(len, parts)):
                _fill(parts, found.stream(min_chunk_size=_PIECE_BYTES))
        return length

    @override
    def delete(self, keys: Sequence[bytes]) -> None:
        names = [key.hex() for key in keys]
        with self._explained():
            try:
                self._lib.delete(self._bucket, names)
            except FileNotFoundError:  # not S3, and it ended there
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        self._lib.delete(self._bucket, name)

    @override
    def scan(self) -> Iterator[bytes]:
        with self._explained():
            for page in self._lib.list(self._bucket):
                for found in page:
                    with contextlib.suppress(ValueError):  # somebody else's
                        key = bytes.fromhex(found["path"])
                        if len(key) == KEY_BYTES:
                            yield key

    @override
    def close(self) -> None:
        """Connections end with the store object."""
        del self._bucket

    async def _heads(self, keys: Sequence[bytes]) -> list[bool]:
        found: list[bool] = []
        for at in range(0, len(keys), _HEADS_AT_A_TIME):
            some = keys[at : at + _HEADS_AT_A_TIME]
            found += await asyncio.gather(*map(self._head, some))
        return found

    async def _head(self, key: bytes) -> bool:
        try:
            await self._lib.head_async(self._bucket, key.hex())
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _explained(self) -> Generator[None, None, None]:
        try:
            yield
        except self._errors as fault:
            # from None: the library's text may quote what was signed
            raise self._faults.explained(fault, self._where) from None


def _fill(parts: Sequence[memoryview], pieces: Iterable[Buffer]) -> None:
    """Copy the pieces, which are together as long as the parts."""
    targets, target = iter(parts), memoryview(b"")
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            target = target or next(targets)
            size = min(len(target), len(rest))
            target[:size] = rest[:size]
            target, rest = target[size:], rest[size:]


def _opened(config: Config) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    client: dict[str, Any] = {
        "timeout": timedelta(seconds=config.timeout_s),
        "connect_timeout": timedelta(seconds=min(config.timeout_s, _CONNECT_TIMEOUT_S)),
    }
    if config.ca_file is not None:
        try:
            client["root_certificate"] = Path(config.ca_file).read_bytes()
        except OSError as fault:
            raise l2.AdapterError(f"{config.ca_file}: {fault.strerror}", lasting=True) from None
    options: dict[str, Any] = {}
    if config.endpoint is not None:
        options["endpoint"] = config.endpoint
        client["allow_http"] = config.endpoint.startswith("http://")
    if config.region is not None:
        options["region"] = config.region
    options["client_options"] = client
    options["retry_config"] = {"max_retries": 0}  # trying again is the worker's business
    try:
        return from_url(config.url, **options)
    except (BaseError, ValueError) as fault:
        raise l2.AdapterError(f"{config.url}: {fault}".splitlines()[0], lasting=True) from None
