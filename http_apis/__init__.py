"""The http process and its routes. To extend it is to add a file.

A module is served when its name ends in `_api` and it stands in this package or in a directory
named with `--http-api-dir`. It must have a module-level `router` of type `fastapi.APIRouter`; it
must not import the application. That is all of the contract:

    from fastapi import APIRouter
    from http_apis.engine import ReadyEngine
    from lmcache_mp import messages
    from lmcache_mp.logging import init_logger

    log = init_logger(__name__)
    router = APIRouter()

    @router.get("/chunks")
    async def chunks(engine: ReadyEngine) -> dict[str, int]:
        report = await engine.call(messages.Status())
        return {"chunks": report.l1.ready_chunks}

`ReadyEngine` answers 503 in the route's stead while there is no engine, and what `engine.call`
raises becomes a status and `{"error": sentence}`: see `http_apis.errors`. Routes are coroutines and
do not block: they share one loop.

Shared state is on `request.app.state`; both are None until the engine has answered, and again while
it is away:

    engine       the typed client of the cache engine       http_apis.engine.Engine
    zmq_server   the ZMQ server behind it                   http_apis.engine.ZmqServer

What cannot be mounted is named with its reason in the log and in GET /status; nothing else is lost.

Who is let in is decided before the routes, by a request's method; `http_apis.demand` is for the
route that its method does not tell the truth of.

Reading order: `structs`, `engine`, `engine_link`, `errors`, `discovery`, `registry`, `demand`,
`bearer`, `door`, `guard`, `app`, then the `*_api` modules; `connections` stands below them all.
"""
