"""Every API module is mounted or named with its reason, and a broken one costs nothing else."""

from __future__ import annotations

import asyncio
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from http_apis.registry import HTTPAPIRegistry, RegistryReport

BUILT_IN = ["cache_api", "healthcheck_api", "root_api", "status_api"]

HELLO = """
    # SPDX-License-Identifier: Apache-2.0
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse
    from lmcache_mp.logging import init_logger

    log = init_logger(__name__)
    router = APIRouter()


    @router.get("/hello")
    async def hello(request: Request):
        engine = getattr(request.app.state, "engine", None)
        if engine is None:
            return JSONResponse(status_code=503, content={"error": "engine not initialized"})
        return {"hello": "world"}
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def api_dir(tmp_path: Path) -> Path:
    path = tmp_path / f"apis-{uuid.uuid4().hex}"
    path.mkdir()
    return path


@pytest.fixture
def write(api_dir: Path) -> Write:
    def write(name: str, source: str) -> Path:
        path = api_dir / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return path

    return write


def routes(path: str, answer: str = "yes") -> str:
    """Source of a good module that serves one path."""
    return f"""
        from fastapi import APIRouter

        router = APIRouter()

        @router.get("{path}")
        async def route() -> str:
            return "{answer}"
    """


def app_with(*directories: Path) -> tuple[FastAPI, RegistryReport]:
    app = FastAPI()
    app.state.engine = None
    registry = HTTPAPIRegistry(app, directories)
    registry.register_all_apis()
    assert app.state.http_apis is registry.report
    return app, registry.report


def get(app: FastAPI, path: str) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(get())


def test_the_built_in_modules_are_mounted_in_alphabetical_order() -> None:
    app, report = app_with()
    assert report.mounted == BUILT_IN
    assert report.failed == {}
    assert get(app, "/").json()["service"] == "lmcache-mp"


def test_the_module_of_the_documentation_is_served_from_a_directory(
    api_dir: Path, write: Write
) -> None:
    write("hello_api", HELLO)
    app, report = app_with(api_dir)
    assert report.mounted == [*BUILT_IN, "hello_api"]
    answer = get(app, "/hello")
    assert (answer.status_code, answer.json()) == (503, {"error": "engine not initialized"})
    app.state.engine = object()
    assert get(app, "/hello").json() == {"hello": "world"}


def test_a_module_is_served_from_any_package_under_its_qualified_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"category_{uuid.uuid4().hex}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "hello_api.py").write_text(textwrap.dedent(HELLO))
    monkeypatch.syspath_prepend(tmp_path)
    registry = HTTPAPIRegistry(FastAPI(), packages=[package])
    registry.register_all_apis()
    assert registry.report.mounted == [f"{package}.hello_api"]


def test_files_of_other_names_are_left_alone(api_dir: Path, write: Write) -> None:
    for name in ("hello", "hello_api_old", "api"):
        write(name, "raise SystemExit(1)")
    (api_dir / "hello_api.txt").write_text("not Python")
    _, report = app_with(api_dir)
    assert (report.mounted, report.failed) == (BUILT_IN, {})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def broken(:", "SyntaxError: invalid syntax (broken_api.py, line 1)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "class Speechless(Exception):\n"
            "    def __str__(self): raise RuntimeError\n"
            "raise Speechless",
            "Speechless",
        ),
        ("x = 1", "it has no module-level `router`"),
        (
            "from fastapi import FastAPI\nrouter = FastAPI()",
            "its `router` is a fastapi.applications.FastAPI, not a fastapi.APIRouter",
        ),
        (
            "from fastapi import APIRouter\nrouter = APIRouter()\n"
            "@router.get('')\ndef empty(): ...",
            "FastAPIError: Prefix and path cannot be both empty (path operation: empty)",
        ),
        (
            "from http_apis.status_api import router",
            "GET /status is already served by status_api",
        ),
    ],
)
def test_a_broken_module_is_named_with_its_reason_and_nothing_else_is_lost(
    api_dir: Path, write: Write, source: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write("a_good_api", routes("/a"))
    write("broken_api", source)
    write("z_good_api", routes("/z"))
    app, report = app_with(api_dir)
    assert report.mounted == [*BUILT_IN, "a_good_api", "z_good_api"]
    assert report.failed == {"broken_api": reason}
    assert f"name=broken_api: {reason}" in caplog.text
    assert {get(app, path).status_code for path in ("/", "/a", "/z")} == {200}


def test_an_interrupt_during_an_import_stops_the_process_not_the_module(
    api_dir: Path, write: Write
) -> None:
    write("hello_api", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        app_with(api_dir)


def test_a_directory_that_cannot_be_read_is_named(api_dir: Path, write: Write) -> None:
    missing, file = api_dir / "missing", write("hello_api", HELLO)
    _, report = app_with(missing, file, api_dir)
    assert report.mounted == [*BUILT_IN, "hello_api"]
    assert report.failed.keys() == {str(missing), str(file)}
    assert report.failed[str(missing)].startswith("FileNotFoundError")
    assert report.failed[str(file)].startswith("NotADirectoryError")


def test_two_directories_may_hold_modules_of_one_name(api_dir: Path) -> None:
    for name in ("one", "two"):
        (api_dir / name).mkdir()
        (api_dir / name / "same_api.py").write_text(textwrap.dedent(routes(f"/{name}", name)))
    app, report = app_with(api_dir / "one", api_dir / "two")
    assert report.mounted == [*BUILT_IN, "same_api", str(api_dir / "two" / "same_api.py")]
    assert [get(app, path).json() for path in ("/one", "/two")] == ["one", "two"]


@pytest.mark.parametrize(
    ("path", "claim", "owner"),
    [
        ("/status", "GET /status", "status_api"),
        ("/openapi.json", "GET /openapi.json", "the application itself"),
        ("/items/{name}", "GET /items/{}", "a_first_api"),
        ("/nested/items", "GET /nested/items", "a_first_api"),
    ],
)
def test_a_route_belongs_to_the_first_that_claims_it(
    api_dir: Path, write: Write, path: str, claim: str, owner: str
) -> None:
    write(
        "a_first_api",
        """
        from fastapi import APIRouter

        router = APIRouter()
        inner = APIRouter()

        @router.get("/items/{item_id}")
        async def item(item_id: str) -> str:
            return "first"

        @inner.get("/items")
        async def items() -> str:
            return "first"

        router.include_router(inner, prefix="/nested")
        """,
    )
    write("b_second_api", routes(path))
    app, report = app_with(api_dir)
    assert report.mounted == [*BUILT_IN, "a_first_api"]
    assert report.failed == {"b_second_api": f"{claim} is already served by {owner}"}
    assert get(app, "/items/1").json() == get(app, "/nested/items").json() == "first"


def test_another_method_or_converter_of_a_path_is_another_route(
    api_dir: Path, write: Write
) -> None:
    write("a_api", routes("/files/{name}", "name"))
    write("b_api", routes("/files/{path:path}", "path"))
    write("c_api", routes("/files/{name}").replace("router.get", "router.put"))
    app, report = app_with(api_dir)
    assert report.failed == {}
    assert [get(app, path).json() for path in ("/files/a", "/files/a/b")] == ["name", "path"]


def test_a_module_may_define_models_and_looks_itself_up_while_it_runs(
    api_dir: Path, write: Write
) -> None:
    write(
        "models_api",
        """
        from __future__ import annotations
        import dataclasses
        from typing import ClassVar
        from fastapi import APIRouter
        from pydantic import BaseModel

        router = APIRouter()

        @dataclasses.dataclass
        class Point:
            unit: ClassVar[str] = "m"
            x: int = 1

        class Line(BaseModel):
            start: Point

        @router.get("/line")
        async def line() -> Line:
            return Line(start=Point())
        """,
    )
    app, report = app_with(api_dir)
    assert report.failed == {}
    assert get(app, "/line").json() == {"start": {"x": 1}}


def test_a_module_whose_lifespan_fails_does_not_stop_the_application(
    api_dir: Path, write: Write
) -> None:
    write(
        "lifespan_api",
        """
        from contextlib import asynccontextmanager
        from fastapi import APIRouter

        @asynccontextmanager
        async def lifespan(app):
            raise OSError("no such device")
            yield

        router = APIRouter(lifespan=lifespan)
        """,
    )
    app, report = app_with(api_dir)

    async def start_and_stop() -> None:
        async with app.router.lifespan_context(app):
            assert report.failed == {"lifespan_api": "OSError: no such device"}

    asyncio.run(start_and_stop())
