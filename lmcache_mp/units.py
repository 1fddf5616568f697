"""Numbers of bytes, as people write and read them. Bytes inside, GiB only where people look."""

from __future__ import annotations

import re
from fractions import Fraction

from typing_extensions import override

UNITS = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
FORMS = "a number of bytes, or one with a binary unit: 1048576, 512 MiB, 1.5GiB, 4G"

_LARGEST = (1 << 63) - 1
_DECIMALS = 1000  # str() prints at most three
_WRITTEN = re.compile(r"\s*(\d{1,20}(?:\.\d{1,12})?)\s*(?:([kmgt])(i?b)?|b)?\s*", re.ASCII | re.I)


class Size(int):
    """A number of bytes that reads `4GiB`; `str` gives it back in a form that reads to the same.

    K, M, G and T alone are binary too, as in `docker --memory 4g`. GB is refused: half of the world
    means 10^9 by it and the other half 2^30.
    """

    def __new__(cls, value: int | str) -> Size:
        """Raises `ValueError` with a sentence if `value` is no number of bytes."""
        number = _read(value) if isinstance(value, str) else value
        if type(number) not in (int, Size) or number < 0:  # YAML brings true, 1.5 and worse
            raise ValueError(f"size {value!r}: expected {FORMS}")
        if number > _LARGEST:
            raise ValueError(f"size {value!r} is more than {_LARGEST} bytes")
        return super().__new__(cls, number)

    @override
    def __str__(self) -> str:
        number = int(self)
        unit, factor = next(
            (unit, factor)
            for unit, factor in UNITS.items()
            if factor == 1 or (number >= factor and number * _DECIMALS % factor == 0)
        )
        whole, rest = divmod(number * _DECIMALS // factor, _DECIMALS)
        return f"{whole}.{rest:03d}".rstrip("0").rstrip(".") + unit

    def plain(self) -> str:
        """As JSON and YAML would have it."""
        return str(self)

    @override
    def __repr__(self) -> str:
        return f"Size({str(self)!r})"


def format_bytes(number: float) -> str:
    """About so many bytes, for people: `3.2 GiB`."""
    unit, factor = next(
        (unit, factor) for unit, factor in UNITS.items() if number >= factor or factor == 1
    )
    return f"{number / factor:.1f} {unit}" if factor > 1 else f"{number:.0f} B"


def _read(text: str) -> int:
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ValueError(f"size {text!r}: expected {FORMS}")
    number, letter, suffix = written.groups()
    if suffix is not None and suffix.lower() == "b":
        unit = letter.upper()
        raise ValueError(
            f"size {text!r}: {unit}B means 1000s to some and 1024s to others: say {unit}iB"
        )
    factor = UNITS[f"{letter.upper()}iB"] if letter else 1
    size = Fraction(number) * factor
    if size.denominator != 1:
        raise ValueError(f"size {text!r} is not a whole number of bytes: it is {float(size):g}")
    return int(size)
