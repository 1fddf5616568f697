"""moto's server, with the flags of `python -m moto.server`, working on one request at a time.

By itself it answers 500 now and then when one object is written by several requests at once: they
close each other's buffers.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from typing import Any

from moto import server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from typing_extensions import override

_turn = threading.Lock()


class OneAtATime(DomainDispatcherApplication):
    """All of moto. Bodies are read and answers are sent by several threads at a time."""

    @override
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if length := environ.get("CONTENT_LENGTH"):
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
        with _turn:
            return [b"".join(super().__call__(environ, start_response))]


if __name__ == "__main__":
    server.DomainDispatcherApplication = OneAtATime  # type: ignore[attr-defined]
    server.main()
