"""`Size`: what people write is what they get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_mp.units import Size, format_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("1048576", 1 << 20),
        ("1.5GiB", 3 << 29),
        ("4g", 4 << 30),
        ("4K", 4096),
        ("2 tib", 2 << 40),
        ("100B", 100),
        ("0.5KiB", 512),
        ("  7  ", 7),
        ("0", 0),
    ],
)
def test_reads_what_people_write(text: str, expected: int) -> None:
    assert Size(text) == expected


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_what_is_printed_reads_back_to_the_same(number: int) -> None:
    assert Size(str(Size(number))) == number


@given(st.integers(min_value=0, max_value=4095), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_a_round_size_is_printed_short(number: int, unit: str) -> None:
    assert len(str(Size(f"{number}{unit}"))) <= len("4095KiB")


def test_prints_the_largest_unit_that_says_it_exactly() -> None:
    assert [str(Size(number)) for number in (4 << 30, 3 << 29, 1025, 0)] == [
        "4GiB",
        "1.5GiB",
        "1025B",
        "0B",
    ]
    assert f"{Size('4GiB')}" == "4GiB"
    assert f"{Size('4GiB'):d}" == "4294967296"


@pytest.mark.parametrize("bad", ["", "x", "-1", "4 apples", "1e9", "0x10", "GiB", "4GiBs", "٤GiB"])
def test_refuses_what_is_no_size_and_says_what_is(bad: str) -> None:
    with pytest.raises(ValueError, match="expected a number of bytes") as caught:
        Size(bad)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("bad", [True, 1.5, -3, None, [1]])
def test_refuses_what_yaml_may_bring_instead(bad: object) -> None:
    with pytest.raises(ValueError, match="expected a number of bytes"):
        Size(bad)  # type: ignore[arg-type]


def test_refuses_a_decimal_unit_as_ambiguous() -> None:
    with pytest.raises(ValueError, match=r"'4GB': GB means .* say GiB"):
        Size("4GB")


def test_refuses_a_fraction_of_a_byte() -> None:
    with pytest.raises(ValueError, match=r"not a whole number of bytes: it is 102\.4"):
        Size("0.1KiB")


def test_refuses_more_than_a_file_can_have() -> None:
    with pytest.raises(ValueError, match="more than 9223372036854775807"):
        Size("99999999TiB")


def test_formats_bytes_for_people() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 GiB",
    ]
