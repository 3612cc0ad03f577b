import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("0", 0), ("1.5", 1.5), ("1.5 h", 5400), ("0s", 0)],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "+1s", "10 s ", "10us", "1d", "1e3", "010", "1_000", "1:30", "٣s", "9" * 19, "1.s"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        units.duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1024", 1024),
        ("7B", 7),
        ("1kB", 1000),
        ("2MB", 2 * 10**6),
        ("3GB", 3 * 10**9),
        ("4KiB", 4096),
        ("50MiB", 50 * 2**20),
        ("4GiB", 4 * 2**30),
        ("1TiB", 2**40),
        ("1.5KiB", 1536),
    ],
)
def test_sizes_are_bytes(text: str, count: int) -> None:
    assert units.size(text) == count


@pytest.mark.parametrize("text", ["10k", "10K", "1KB", "1kiB", "1PiB", "0.3KiB", "1.5", "4GiB/s", "-1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        units.size(text)


@pytest.mark.parametrize(("text", "a_second"), [("2000/s", 2000), ("60/min", 1), ("36/h", 0.01), ("5", 5), ("0.5/s", 0.5)])
def test_rates_are_per_second(text: str, a_second: float) -> None:
    assert units.rate(text) == a_second


@pytest.mark.parametrize("text", ["5/", "5/m", "5/second", "5MiB/s", "/s", "5/s/s", "5s/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError):
        units.rate(text)


@pytest.mark.parametrize(("text", "a_second"), [("200MiB/s", 200 * 2**20), ("60kB/min", 1000), ("512", 512), ("1B/s", 1)])
def test_rates_of_bytes_are_per_second(text: str, a_second: float) -> None:
    assert units.byte_rate(text) == a_second


@pytest.mark.parametrize("text", ["200Mb/s", "200MiB/", "200MiB/day", "MiB/s"])
def test_what_is_no_rate_of_bytes(text: str) -> None:
    with pytest.raises(ValueError):
        units.byte_rate(text)


@given(st.text())
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    for parse in (units.duration, units.size, units.rate, units.byte_rate):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            told = str(error)
            assert told


@given(st.integers(0, 10**18 - 1), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert units.size(f"{number}{unit}") == number * units.size(f"1{unit}")
