from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import BadAddress, validate_address
from bus.address import MAX_SOCKET_PATH_BYTES, is_loopback


@pytest.mark.parametrize(
    "address", ["ipc:///run/x/bus.sock", "tcp://127.0.0.1:5555", "tcp://*:0", "tcp://[::1]:65535"]
)
def test_an_address_of_a_socket_is_taken_as_it_is(address: str) -> None:
    assert validate_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bus.sock",
        "inproc://bus",
        "ipc:bus.sock",
        "tcp://",
        "tcp://localhost",
        "tcp://:5555",
        "tcp://localhost:",
        "tcp://localhost:65536",
        "tcp://localhost:-1",
        "tcp://localhost:\N{SUPERSCRIPT TWO}",
        "tcp://localhost:\N{ARABIC-INDIC DIGIT THREE}",
        "ipc:///run/\0hidden",
        "ipc:///run/\udcff/bus.sock",
    ],
)
def test_anything_else_is_refused_by_a_sentence_that_names_it(address: str) -> None:
    with pytest.raises(BadAddress) as refused:
        validate_address(address)
    assert repr(address) in str(refused.value)


def test_a_relative_socket_path_is_refused() -> None:
    with pytest.raises(BadAddress, match="must be absolute"):
        validate_address("ipc://bus.sock")


def test_a_path_too_long_for_a_unix_socket_is_refused_with_both_lengths() -> None:
    fits = "/" + "x" * (MAX_SOCKET_PATH_BYTES - 1)
    assert validate_address(f"ipc://{fits}")
    with pytest.raises(BadAddress, match=r"108 bytes long.* 107.*shorter run directory"):
        validate_address(f"ipc://{fits}x")


def test_the_length_of_a_path_is_counted_in_bytes() -> None:
    with pytest.raises(BadAddress, match="121 bytes long"):
        validate_address("ipc:///" + "ä" * 60)


@given(st.one_of(st.text(), st.text().map("ipc:///".__add__), st.text().map("tcp://h:".__add__)))
def test_whatever_the_text_is_it_is_an_address_or_refused_as_one(text: str) -> None:
    with contextlib.suppress(BadAddress):
        assert validate_address(text) == text


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("ipc:///run/x/bus.sock", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://localhost.example.com:1", False),
    ],
)
def test_only_what_other_hosts_cannot_reach_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
