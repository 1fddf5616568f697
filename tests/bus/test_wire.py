from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import CallError, StaleEpoch, wire
from tests.bus.vocabulary import Echo, Refused

U64 = st.integers(0, (1 << 64) - 1)


def test_a_frame_is_these_bytes_and_no_others() -> None:
    assert wire.frame(wire.REQUEST, 5, 7, Echo("hi")) == bytes.fromhex(
        "4b560101000000000500000000000000070000000000000092a46563686fa26869"
    )


@given(kind=st.sampled_from(list(wire.Kind)), call_id=U64, epoch=U64, text=st.text())
def test_a_frame_is_parsed_as_what_was_framed(
    kind: wire.Kind, call_id: int, epoch: int, text: str
) -> None:
    data = wire.frame(kind, call_id, epoch, Echo(text))
    assert wire.parse(data) == (wire.PROTOCOL_VERSION, kind, call_id, epoch)
    assert data[wire.HEADER.size :] == wire.encode(Echo(text))


@given(st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(wire.MAGIC.__add__)))
def test_whatever_the_bytes_are_they_parse_or_are_not_well_framed(data: bytes) -> None:
    try:
        version, kind, call_id, epoch = wire.parse(data)
    except wire.NotWellFramed:
        return
    assert data.startswith(wire.HEADER.pack(wire.MAGIC, version, kind, 0, call_id, epoch))


@pytest.mark.parametrize("length", range(wire.HEADER.size))
def test_fewer_bytes_than_a_header_are_not_well_framed(length: int) -> None:
    whole = wire.frame(wire.REQUEST, 1, 0, Echo("a"))
    with pytest.raises(wire.NotWellFramed, match=f"{length} bytes are fewer"):
        wire.parse(whole[:length])


def test_the_header_of_another_version_is_read_all_the_same() -> None:
    data = wire.HEADER.pack(wire.MAGIC, 200, wire.REQUEST, 0, 9, 3) + b"unknown to us"
    assert wire.parse(data) == (200, wire.REQUEST, 9, 3)


def test_an_error_comes_back_as_its_own_class_with_its_sentence_and_values() -> None:
    error = wire.decode_error(
        wire.error_frame(1, 0, Refused("refused 3 of 5", refused=3, share=0.6, who="me"))
    )
    assert type(error) is Refused
    assert error.message == str(error) == "refused 3 of 5"
    assert error.values == {"refused": 3, "share": 0.6, "who": "me"}


def test_an_error_of_the_bus_comes_back_as_its_own_class() -> None:
    error = wire.decode_error(wire.error_frame(1, 0, StaleEpoch("old", epoch=1, expected=2)))
    assert type(error) is StaleEpoch
    assert error.values == {"epoch": 1, "expected": 2}


def test_an_error_of_a_code_unknown_here_is_a_call_error_with_its_sentence() -> None:
    class OfALaterRelease(CallError):
        code = "tests_of_a_later_release"

    data = wire.error_frame(1, 0, OfALaterRelease("new", number=4))
    del CallError._by_code[OfALaterRelease.code]
    error = wire.decode_error(data)
    assert type(error) is CallError
    assert (error.message, error.values) == ("new", {"number": 4})


def test_an_error_that_cannot_be_written_as_it_is_keeps_its_code_and_a_readable_sentence() -> None:
    error = wire.decode_error(wire.error_frame(1, 0, Refused("of /a/\udcff", number=1 << 70)))
    assert type(error) is Refused
    assert error.message == "of /a/\\udcff"
