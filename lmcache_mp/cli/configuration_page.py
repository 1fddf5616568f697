"""docs/configuration.md, made from the settings: `lmcache-mp config --markdown`."""

from __future__ import annotations

import textwrap

from lmcache_mp.config import settings
from lmcache_mp.setting import Setting

HEAD = """\
# Configuration

Made by `lmcache-mp config --markdown` from `lmcache_mp/config.py`; a test compares the two.

Every setting of a server is one key. Its value comes from the first of these that names it:

1. a flag of `lmcache-mp serve`: `--l1-size 64GiB`
2. an environment variable: `LMCACHE_MP_L1_SIZE=64GiB`; lists are separated by commas
3. a YAML file, named with `--config FILE` or `LMCACHE_MP_CONFIG`:

   ```yaml
   name: default
   l1_size: 64GiB
   http_host: 0.0.0.0
   ```

4. its default

An unknown key, flag or `LMCACHE_MP_...` variable is refused with the name that was probably meant,
and so is a value out of bounds: no typing error is ever silently a default. `lmcache-mp config`
shows which value `serve` would take, and where it comes from; it takes the same flags.

The other commands find a server by `name` and `run_dir`, in the same ways.

| key | default | what |
|---|---|---|
"""


def configuration_page() -> str:
    """The whole page."""
    return HEAD + "".join(map(_row, settings())) + "".join(map(_section, settings()))


def _row(setting: Setting) -> str:
    key = setting.key
    return f"| [`{key}`](#{key}) | `{setting.default_text}` | {_summary(setting)} |\n"


def _summary(setting: Setting) -> str:
    """The first sentence of its description."""
    return setting.description.partition(". ")[0].rstrip(".").replace("|", "\\|")


def _section(setting: Setting) -> str:
    flag = f"{setting.flag} / --no{setting.flag[1:]}" if setting.is_switch else setting.flag
    repeatable = ", repeatable" if setting.is_list else ""
    return (
        f"\n## {setting.key}\n\n"
        f"{textwrap.fill(setting.description, 100, break_on_hyphens=False)}\n\n"
        f"* value: {setting.form}\n"
        f"* default: `{setting.default_text}`\n"
        f"* flag: `{flag}`{repeatable}\n"
        f"* variable: `{setting.env}`\n"
    )
