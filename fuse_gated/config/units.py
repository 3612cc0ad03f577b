"""Durations, sizes and rates as people write them: '500ms', '4GiB', '2000/s'.

Every function raises ValueError for text that it does not understand; the constants beside them say, for people, what
would have been understood.
"""

import re
from fractions import Fraction
from typing import Final

DURATION_FORM: Final = "such as 500ms, 10s, 2m or 1h; a plain number is seconds"
SIZE_FORM: Final = "such as 1024, 512KiB, 50MiB or 4GiB; also kB, MB, GB, TiB and B"
RATE_FORM: Final = "such as 2000/s or 60/min; a plain number is per second"
BYTE_RATE_FORM: Final = "such as 200MiB/s or 1GiB/min; a plain number is bytes per second"

_SECONDS: Final = {"": Fraction(1), "ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_BYTES: Final = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_PERIODS: Final = {"s": 1, "min": 60, "h": 3600}

# Eighteen digits are more than any limit here needs, and keep a hostile number from costing anything.
_QUANTITY: Final = re.compile(r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})? ?([A-Za-z]{0,3})", re.ASCII)


def duration(text: str) -> float:
    """Seconds, of '10s', '500ms', '2m', '1h' or a plain number."""
    number, unit = _quantity(text)
    if unit not in _SECONDS:
        raise ValueError(f"no unit of time: {unit}")
    return float(number * _SECONDS[unit])


def size(text: str) -> int:
    """Bytes, of '4GiB', '50MB' or a plain number; only a whole number of them."""
    number = _bytes(text)
    if number.denominator != 1:
        raise ValueError("not a whole number of bytes")
    return int(number)


def rate(text: str) -> float:
    """So many a second, of '2000/s', '60/min', '100/h' or a plain number."""
    amount, seconds = _per(text)
    number, unit = _quantity(amount)
    if unit:
        raise ValueError(f"a unit where only a number may stand: {unit}")
    return float(number / seconds)


def byte_rate(text: str) -> float:
    """Bytes a second, of '200MiB/s', '1GiB/min' or a plain number."""
    amount, seconds = _per(text)
    return float(_bytes(amount) / seconds)


def _bytes(text: str) -> Fraction:
    number, unit = _quantity(text)
    if unit not in _BYTES:
        raise ValueError(f"no unit of size: {unit}")
    return number * _BYTES[unit]


def _per(text: str) -> tuple[str, int]:
    amount, slash, period = text.partition("/")
    if slash and period not in _PERIODS:
        raise ValueError(f"no period: {period}")
    return amount, _PERIODS[period or "s"]


def _quantity(text: str) -> tuple[Fraction, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("not a number with a unit")
    whole, decimals, unit = match.groups()
    return Fraction(whole + (decimals or "")), unit
