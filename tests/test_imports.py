import subprocess
import sys

from tests.import_directions import faults_of


def test_an_import_against_the_direction_is_named() -> None:
    assert list(faults_of("bus.server", "from lmcache_mp import keys"))
    assert list(faults_of("lmcache_mp.engine.service", "def f():\n    import http_apis.app"))
    assert list(faults_of("http_apis.app", "from lmcache_mp.integration import vllm"))
    assert list(faults_of("lmcache_mp.client.cache", "import numpy"))


def test_leaves_may_import_what_is_above_them() -> None:
    assert not list(faults_of("lmcache_mp.frontend.app", "import http_apis.registry, bus"))
    assert not list(faults_of("http_apis.app", "from lmcache_mp import messages"))


def test_the_client_needs_neither_torch_nor_numpy_nor_fastapi() -> None:
    heavy = ("torch", "numpy", "fastapi", "uvicorn", "yaml", "rich", "asyncio")
    code = f"import sys, lmcache_mp.client; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
