"""README's example is what a newcomer runs first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.world import EngineProcess, short_directory

README = Path(__file__).parent.parent / "README.md"


def test_the_first_hit_prints_what_readme_says(
    start_engine: Callable[..., EngineProcess],
) -> None:
    text = README.read_text()
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    promised = re.search(r"It prints `(.*?)`", text)
    assert promised is not None
    with short_directory() as runtime:
        engine = start_engine()
        default = runtime / "lmcache-mp" / "default"
        default.parent.mkdir()
        default.symlink_to(engine.run_dir.path)
        shown = subprocess.run(
            [sys.executable, "-c", match[1]],
            env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert shown.stdout.strip() == promised[1]
