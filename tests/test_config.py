"""One field is flag, YAML key, environment variable, default, check and help."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lmcache_mp.cli.sources import resolve
from lmcache_mp.config import Config, ConfigError, settings
from lmcache_mp.rundir import RunDir
from lmcache_mp.tiering.spec import AdapterSpec
from lmcache_mp.units import Size

OTHER_VALUES: dict[str, tuple[str, Any]] = {
    "name": ("other", "other"),
    "run_dir": ("/run/x", "/run/x"),
    "bus": ("ipc:///run/x/extra.sock", ("ipc:///run/x/extra.sock",)),
    "bus_insecure_loopback": ("true", True),
    "bus_keys": ("/etc/keys", "/etc/keys"),
    "bus_max_message": ("2MiB", Size("2MiB")),
    "bus_queue_messages": ("512", 512),
    "max_connections": ("7", 7),
    "max_open_calls": ("200", 200),
    "max_leases": ("9", 9),
    "engine_memory": ("1GiB", Size("1GiB")),
    "access_group": ("users", "users"),
    "l2": (
        '{"type": "memory", "name": "m"}',
        (AdapterSpec({"type": "memory", "name": "m"}),),
    ),
    "http_token_file": ("/etc/token", "/etc/token"),
    "http_allowed_host": ("kv.example", ("kv.example",)),
    "l1_size": ("1.5GiB", Size("1.5GiB")),
    "l1_dir": ("/mnt/huge", "/mnt/huge"),
    "keep_l1": ("false", False),
    "drain_s": ("2.5", 2.5),
    "chunk_tokens": ("512", 512),
    "eviction_policy": ("lru", "lru"),
    "http_host": ("0.0.0.0", "0.0.0.0"),
    "http_port": ("0", 0),
    "http_api_dir": ("/opt/apis", ("/opt/apis",)),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


def yaml_file(directory: Path, text: str) -> dict[str, str]:
    """The flags that name a new file of this text."""
    path = directory / "server.yaml"
    path.write_text(text)
    return {"config": str(path)}


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.key)
class TestEverySetting:
    def test_is_read_from_flag_environment_and_file_alike(
        self, setting: Any, tmp_path: Path
    ) -> None:
        text, value = OTHER_VALUES[setting.key]
        item = f"[{text}]" if setting.is_list else text
        in_file = yaml_file(tmp_path, f"{setting.key}: {item}\n")
        flag = value if setting.is_switch else [text] if setting.is_list else text
        for resolved in (
            resolve({setting.key: flag}, {}),
            resolve({}, {setting.env: text}),
            resolve(in_file, {}),
        ):
            assert getattr(resolved.config, setting.key) == value
            assert resolved.sources[setting.key] != "default"

    def test_has_a_sentence_a_form_and_a_valid_default(self, setting: Any) -> None:
        assert setting.description.endswith((".", ")"))
        assert setting.form
        assert setting.read(setting.default, "default") == setting.default


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    flags = yaml_file(tmp_path, "http_port: 1\nchunk_tokens: 1\ndrain_s: 1\n")
    environment = {"LMCACHE_MP_HTTP_PORT": "2", "LMCACHE_MP_CHUNK_TOKENS": "2"}
    resolved = resolve({**flags, "http_port": "3"}, environment)
    assert resolved.config == Config(http_port=3, chunk_tokens=2, drain_s=1.0)
    assert resolved.sources["http_port"] == "--http-port"
    assert resolved.sources["chunk_tokens"] == "LMCACHE_MP_CHUNK_TOKENS"
    assert resolved.sources["drain_s"] == flags["config"]
    assert resolved.sources["name"] == "default"


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "name: by-file\n")["config"]
    assert resolve({}, {"LMCACHE_MP_CONFIG": path}).config.name == "by-file"


def test_an_empty_file_and_an_empty_variable_set_nothing(tmp_path: Path) -> None:
    flags = yaml_file(tmp_path, "# nothing yet\n")
    assert resolve(flags, {"LMCACHE_MP_L1_SIZE": ""}).config == Config()


def test_a_list_in_the_environment_is_separated_by_commas() -> None:
    resolved = resolve({}, {"LMCACHE_MP_BUS": "ipc:///a.sock, ipc:///b.sock"})
    assert resolved.config.bus == ("ipc:///a.sock", "ipc:///b.sock")


def test_what_kubernetes_puts_into_every_pod_is_no_setting() -> None:
    environment = {
        "LMCACHE_MP_SERVICE_HOST": "10.0.0.1",
        "LMCACHE_MP_SERVICE_PORT_HTTP": "8080",
        "LMCACHE_MP_PORT": "tcp://10.0.0.1:8080",
        "LMCACHE_MP_PORT_8080_TCP_ADDR": "10.0.0.1",
        "LMCACHE_MP_ENGINE_SERVICE_HOST": "10.0.0.2",
        "LMCACHE_MP_ENGINE_PORT_80_TCP": "tcp://10.0.0.2:80",
    }
    assert resolve({}, environment).config == Config()


@pytest.mark.parametrize(
    ("flags", "environment", "text", "sentence"),
    [
        ({}, {}, "l1size: 4GiB", "unknown key 'l1size' in FILE: did you mean l1_size?"),
        ({}, {}, "7: 8", "unknown key 7 in FILE: known are name, run_dir, bus"),
        (
            {},
            {"LMCACHE_MP_L1SIZE": "4GiB"},
            "",
            "unknown environment variable LMCACHE_MP_L1SIZE: did you mean LMCACHE_MP_L1_SIZE?",
        ),
        (
            {},
            {},
            "http_port: '8080'",
            "http_port from FILE: '8080': expected a whole number from 0 to 65535",
        ),
        (
            {"http_port": "99999"},
            {},
            "",
            "http_port from --http-port: '99999': expected a whole number from 0 to 65535",
        ),
        (
            {},
            {"LMCACHE_MP_KEEP_L1": "perhaps"},
            "",
            "keep_l1 from LMCACHE_MP_KEEP_L1: 'perhaps': expected true or false",
        ),
        ({}, {}, "drain_s: .nan", "drain_s from FILE: nan: expected a number from 0 to 3600"),
        ({}, {}, "bus: ipc:///a", "bus from FILE: 'ipc:///a': expected a list, each ipc:///path"),
        ({}, {}, "name: ../x", "name from FILE: '../x': expected 1 to 64 of A-Z"),
        ({"name": ".."}, {}, "", "name from --name: '..': expected 1 to 64 of A-Z"),
        ({"name": "a\n"}, {}, "", "name from --name: 'a\\n': expected 1 to 64 of A-Z"),
        ({"l1_size": "4GB"}, {}, "", "l1_size from --l1-size: size '4GB': GB means"),
        ({"l1_size": "5"}, {}, "", "l1_size: 5B is less than 1MiB"),
        ({}, {}, "l1_size: true", "l1_size from FILE: size True: expected a number of bytes"),
        ({"eviction_policy": "sieve"}, {}, "", "--eviction-policy: 'sieve': expected lru"),
        ({"l1_dir": "shm"}, {}, "", "l1_dir from --l1-dir: 'shm': expected an absolute path"),
        ({}, {}, "- a", "config file FILE: expected keys and values, found a list"),
        ({}, {}, "a: [", "config file FILE is not YAML: while parsing"),
        ({}, {}, "a: \x00", "config file FILE is not YAML:"),
        ({"config": "/nowhere.yaml"}, {}, "", "config file /nowhere.yaml cannot be read: No such"),
    ],
)
def test_a_bad_value_is_refused_by_key_value_and_source(
    flags: dict[str, str], environment: dict[str, str], text: str, sentence: str, tmp_path: Path
) -> None:
    file = yaml_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        resolve({**file, **flags}, environment)
    assert sentence in str(caught.value).replace(file["config"], "FILE")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bus": ("nonsense",)}, "bus address 'nonsense': expected ipc:///path/of/socket"),
        ({"bus": ("tcp://10.0.0.1:5555",)}, "make some with `lmcache-mp keys`"),
        ({"bus": ("tcp://*:5555",), "bus_insecure_loopback": True}, "requires keys"),
        ({"bus": ("tcp://127.0.0.1:5555",)}, "set bus_insecure_loopback if that is meant"),
        ({"http_port": -1}, "http_port from the program: -1: expected a whole number"),
        ({"keep_l1": "yes"}, "keep_l1 from the program: 'yes': expected true or false"),
    ],
)
def test_a_config_that_exists_is_valid(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert sentence in str(caught.value)


def test_tcp_on_the_loopback_interface_is_allowed_if_meant() -> None:
    address = "tcp://127.0.0.1:5555"
    assert Config(bus=(address,), bus_insecure_loopback=True).bus == (address,)


def test_a_relative_run_directory_is_made_absolute(tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path)
    assert Config(run_dir=relative).resolved_run_dir() == RunDir(tmp_path)


def test_the_default_run_directory_carries_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert Config(name="two").resolved_run_dir() == RunDir(tmp_path / "lmcache-mp" / "two")


def test_what_is_saved_loads_as_the_same_and_is_private(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    config = Config(**{key: value for key, (_, value) in OTHER_VALUES.items()})
    config.save(run_dir)
    assert Config.load(run_dir) == config
    assert stat.S_IMODE(run_dir.config_file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [run_dir.config_file.name]


@pytest.mark.parametrize("content", [None, "", "{", '{"http_port": 70000}', '{"nam": "x"}'])
def test_settings_that_cannot_be_loaded_are_an_error_naming_the_file(
    content: str | None, tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path)
    if content is not None:
        run_dir.config_file.write_text(content)
    with pytest.raises(ConfigError, match=str(run_dir.config_file)):
        Config.load(run_dir)
