"""Asking the HTTP application in this process, over ASGI, with somebody's module mounted."""

from __future__ import annotations

import asyncio
import textwrap
import uuid
from pathlib import Path
from typing import Any

import httpx
from starlette.types import Message

from http_apis.app import create_app
from http_apis.bearer import Bearer
from http_apis.door import Door

TOKEN = "0123456789abcdef-the-token"
GOOD = {"Authorization": f"Bearer {TOKEN}"}
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"

PLUGIN = """
    from fastapi import APIRouter, File, Request, UploadFile, WebSocket
    from http_apis.demand import Demand
    from http_apis.door import require_change_right

    router = APIRouter()

    @router.get("/conf")
    async def show() -> dict:
        return {}

    @router.api_route("/conf", methods=["POST", "PUT", "PATCH", "DELETE"])
    async def change(request: Request) -> dict:
        return {"received": len(await request.body())}

    @router.post("/typed")
    async def typed(values: dict) -> dict:
        return values

    @router.post("/run_script")
    @Demand(never_open=True, media_types=("multipart/form-data",), max_body_bytes=1 << 21)
    async def run_script(script: UploadFile = File()) -> dict:
        return {"received": len(await script.read())}

    @router.get("/dump")
    @Demand(changes=True)
    async def dump() -> str:
        return "dump"

    @router.post("/query")
    @Demand(changes=False)
    async def query(request: Request) -> dict:
        return {"received": len(await request.body())}

    @router.get("/loglevel")
    async def loglevel(request: Request, level: str = "") -> str:
        if level:
            require_change_right(request)
        return level

    @router.post("/shadow/{anything}")
    async def catches_all(anything: str) -> str:
        return anything

    @router.post("/shadow/query")
    @Demand(changes=False)
    async def never_reached() -> None: ...

    @router.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()
"""


class Asker:
    """An application with `PLUGIN`, in this process and without an engine, and who asks it."""

    def __init__(self, directory: Path, listens_on: str, token: Path | None) -> None:
        apis = directory / f"apis-{uuid.uuid4().hex}"
        apis.mkdir()
        (apis / "plugin_api.py").write_text(textwrap.dedent(PLUGIN))
        bearer = None if token is None else Bearer(str(token))
        self.app = create_app("ipc:///nobody", Door(listens_on, ("KV.example",), bearer), [apis])
        assert self.app.state.http_apis.failed == {}

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://[::1]:1") as client:
                return await client.request(method, path, **request)

        return asyncio.run(ask())

    def raw(self, scope: dict[str, Any]) -> Message:
        """The first thing that the application says to a request as a server would hand it over."""
        said: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect" if scope["type"] == "websocket" else "http.request"}

        async def send(message: Message) -> None:
            said.append(message)

        defaults = {"path": "/", "query_string": b"", "root_path": "", "client": ("::1", 1)}
        asyncio.run(self.app({**defaults, **scope}, receive, send))
        return said[0]
