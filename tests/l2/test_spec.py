"""What people write for an adapter: what is meant, what is refused and how, no secrets."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmcache_mp import l2
from lmcache_mp.config import Config
from lmcache_mp.l2 import memory
from lmcache_mp.redaction import without_secrets
from lmcache_mp.setting import ConfigError
from lmcache_mp.tiering.spec import AdapterSpec, BadAdapter, Common, known_types
from lmcache_mp.units import Size

ADAPTER = """
from lmcache_mp import l2
from lmcache_mp.l2.memory import Adapter
class Config(l2.AdapterConfig, frozen=True, kw_only=True):
    login_password: str = ""
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of `plugged_in.adapter`, a type that is not in this tree."""
    package = tmp_path / "plugged_in"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package / "adapter.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugged_in"]:
        del sys.modules[name]


def refusal(value: Any) -> str:
    with pytest.raises(BadAdapter) as caught:
        AdapterSpec(value)
    return str(caught.value)


def test_a_mapping_and_its_json_mean_the_same() -> None:
    mapping = {"type": "memory", "capacity": "64MiB", "cascade": "evict", "name": "m"}
    spec = AdapterSpec(mapping)
    assert spec.common == Common(type="memory", cascade="evict", name="m")
    assert spec.config == memory.Config(capacity=Size("64MiB"))
    assert spec.mapping == spec.plain() == spec.shown == mapping
    text = '{"type": "memory", "capacity": "64MiB", "cascade": "evict", "name": "m"}'
    for other in (AdapterSpec(text), AdapterSpec(spec), AdapterSpec({**mapping, "retries": 2})):
        assert other == spec
        assert hash(other) == hash(spec)
    assert spec != AdapterSpec({**mapping, "capacity": "65MiB"})
    assert spec != AdapterSpec({**mapping, "retries": 3})
    assert spec != mapping


def test_it_opens_the_adapter() -> None:
    adapter = AdapterSpec({"type": "memory"}).open()
    assert isinstance(adapter, memory.Adapter)
    assert adapter.config == memory.Config()
    adapter.close()


def test_a_type_of_another_package_is_one_like_ours(plugin: Path) -> None:
    plugin.write_text(ADAPTER)
    spec = AdapterSpec({"type": "plugged_in.adapter", "login_password": "hunter2"})
    assert spec.config.login_password == "hunter2"
    assert spec.shown == {"type": "plugged_in.adapter", "login_password": "***"}


EXPECTED = 'expected a mapping such as {"type": "fs", "path": "/kv"}'
OF_EVERY = "type, name, cascade, queue, load_threads, store_threads, deadline_s, retries"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("", f"it is no JSON: Input data was truncated; {EXPECTED}"),
        ("fs", f"it is no JSON: .*; {EXPECTED}"),
        ("{type: fs}", f"it is no JSON: JSON is malformed: .*; {EXPECTED}"),
        ("[" * 100_000, f"it is no JSON: maximum recursion depth exceeded.*; {EXPECTED}"),
        ("\udc80", f"it is no JSON: .*surrogates not allowed; {EXPECTED}"),
        ("[]", f"it is of type list; {EXPECTED}"),
        ("null", f"it is of type NoneType; {EXPECTED}"),
        (7, f"it is of type int; {EXPECTED}"),
        ({1: 2}, f"one of its keys is no text; {EXPECTED}"),
        ({}, "no type: known are fault, fs, memory, redis, s3"),
        (
            {"type": "nfs"},
            "unknown type 'nfs': known are fault, fs, memory, redis, s3, or the dotted path of a "
            "module",
        ),
        ({"type": 7}, f"Expected `str`, got `int` - at `$.type` (its settings: {OF_EVERY})"),
        ({"type": ""}, f"Expected `str` of length >= 1 - at `$.type` (its settings: {OF_EVERY})"),
        (
            {"type": "memory", "cascade": "always"},
            f"Invalid enum value 'always' - at `$.cascade` (its settings: {OF_EVERY})",
        ),
        (
            {"type": "memory", "name": "a/b"},
            "Expected `str` matching regex .* - at `$.name` (its settings: .*)",
        ),
        (
            {"type": "memory", "queue": "1GB"},
            "size '1GB': GB means 1000s to some and 1024s to others: say GiB - at `$.queue` .*",
        ),
        (
            {"type": "memory", "load_threads": 0},
            "Expected `int` >= 1 - at `$.load_threads` .*",
        ),
        (
            {"type": "memory", "capacityy": "1GiB"},
            "type 'memory': Object contains unknown field `capacityy` (its settings: "
            f"capacity; of every adapter: {OF_EVERY})",
        ),
        (
            {"type": "memory", "capacity": True},
            "type 'memory': size True: expected a number of bytes.* - at `$.capacity` .*",
        ),
        (
            {"type": "fs"},
            "type 'fs': Object missing required field `path` (its settings: path.*)",
        ),
        (
            {"type": "no.such"},
            "type 'no.such': cannot be imported: ModuleNotFoundError: No module named 'no'",
        ),
        ({"type": ".."}, "type '..': cannot be imported: .*"),
        (
            {"type": "os.path"},
            "type 'os.path': os.path has no Config that is an l2.AdapterConfig",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(value: Any, sentence: str) -> None:
    pattern = re.escape(sentence).replace(r"\.\*", ".*")
    assert re.fullmatch(pattern, refusal(value), re.DOTALL), refusal(value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("this is no Python", "cannot be imported: SyntaxError: invalid syntax .*"),
        ("raise OSError('no card')", "cannot be imported: OSError: no card"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("Config = dict", "plugged_in.adapter has no Config that is an l2.AdapterConfig"),
        (
            "from lmcache_mp.l2.memory import Config\nclass Adapter: ...",
            "plugged_in.adapter has no Adapter that is an l2.Adapter",
        ),
        (
            "from lmcache_mp import l2\nfrom lmcache_mp.l2.memory import Config\n"
            "class Adapter(l2.Adapter):\n    def close(self): ...\n    def scan(self): ...",
            "its Adapter lacks delete, load, lookup, store",
        ),
        (
            "from lmcache_mp.l2.memory import Adapter, l2\n"
            "class Config(l2.AdapterConfig, frozen=True):\n    name: str\n    queue: int = 1",
            "its Config has name, queue, which every adapter has",
        ),
    ],
)
def test_a_module_that_is_no_adapter_is_refused(plugin: Path, source: str, sentence: str) -> None:
    plugin.write_text(source)
    told = refusal({"type": "plugged_in.adapter"})
    assert re.fullmatch(f"type 'plugged_in.adapter': {sentence}", told), told


def test_the_types_are_the_modules_of_the_package() -> None:
    assert known_types() == ["fault", "fs", "memory", "redis", "s3"]
    for kind in known_types():
        config = {"fs": {"path": "/kv"}, "redis": {"url": "redis://h"}, "s3": {"url": "s3://b/p"}}
        of = {"of": {"type": "memory"}} if kind == "fault" else {}
        assert isinstance(
            AdapterSpec({"type": kind, **config.get(kind, {}), **of}).config, l2.AdapterConfig
        )


SECRETIVE: list[dict[str, Any]] = [
    {"type": "redis", "url": "redis://user:hunter2@cache:6379/0"},
    {"type": "redis", "url": "redis://:hunter2@cache:6379/0"},
    {"type": "redis", "url": "rediss://user:not/escaped@hunter2@cache"},
    {"type": "redis", "url": "unix:///run/redis.sock?db=0&password=hunter2"},
    {"type": "fault", "of": {"type": "redis", "url": "redis://user:hunter2@cache"}},
    {"type": "plugged_in.adapter", "login_password": "hunter2"},
    {"type": "fault", "of": {"type": "plugged_in.adapter", "login_password": "hunter2"}},
]


@pytest.mark.parametrize("mapping", SECRETIVE)
def test_no_secret_is_shown(plugin: Path, mapping: dict[str, Any]) -> None:
    plugin.write_text(ADAPTER)
    spec = AdapterSpec(mapping)
    config = Config(run_dir="/kv", l2=(spec,))
    assert "hunter2" in repr(spec.mapping)
    for shown in (spec.shown, spec, config, config.shown()):
        assert "hunter2" not in repr(shown)
    assert spec.shown["type"] == mapping["type"]


@pytest.mark.parametrize("mapping", SECRETIVE)
@pytest.mark.parametrize("damage", [{"x": 1}, {"queue": -1}, {"type": 1}, {"type": "x"}, {7: 7}])
def test_no_secret_is_in_a_refusal(
    plugin: Path, mapping: dict[str, Any], damage: dict[Any, Any]
) -> None:
    plugin.write_text(ADAPTER)
    assert "hunter2" not in refusal({**mapping, **damage})
    for value in (mapping | damage, [[mapping]], repr(mapping), [repr(mapping)]):
        with pytest.raises(ConfigError) as caught:
            Config(run_dir="/kv", l2=value)  # type: ignore[arg-type]
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("redis://user:p@cache:6379/0", "redis://***@cache:6379/0"),
        ("https://token@host/a@b", "https://***@host/a@b"),
        ("s3://bucket/models@v2", "s3://bucket/models@v2"),
        ("az://a/c?sig=abc&se=1", "az://a/c?sig=***&se=1"),
        ('{"x_password": "a \\"b\\" c", "of": 1}', '{"x_password": ***, "of": 1}'),
        ("{secret: 'a b", "{secret: ***"),
        ("password_file: /run/p", "password_file: /run/p"),
        ({"Password": 1, "secret": [2], "secrets": 3}, None),
        ([{"a": ({"password": ""},)}, 4, None], [{"a": [{"password": "***"}]}, 4, None]),
    ],
)
def test_what_is_hidden_and_what_is_not(value: Any, shown: Any) -> None:
    if shown is None:
        shown = {"Password": "***", "secret": "***", "secrets": 3}
    assert without_secrets(value) == shown
