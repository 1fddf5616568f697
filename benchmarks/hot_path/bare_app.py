"""The least that answers /healthcheck: FastAPI and uvicorn with as many routes as the server has.

python -m benchmarks.hot_path.bare_app PORT
"""

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def root() -> dict[str, str]:
    """As the server's."""
    return {"status": "running"}


@app.get("/healthcheck")
async def healthcheck() -> dict[str, str]:
    """As the server's, without an engine to ask."""
    return {"status": "healthy"}


@app.get("/status")
async def status() -> dict[str, str]:
    """As the server's, with nothing to say."""
    return {}


@app.post("/clear-cache")
async def clear_cache() -> dict[str, int]:
    """As the server's, with nothing to clear."""
    return {"cleared_chunks": 0}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
