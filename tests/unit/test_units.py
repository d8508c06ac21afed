# SPDX-License-Identifier: Apache-2.0
"""Quantities in users' notation and on screens."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import UsageError
from nettop.query.units import human, human_spread, parse_quantity, unit_of
from nettop.snapshots.connections import SOCKETS

UNITS = ["bytes", "bytes/s", "packets", "packets/s", "us", "ns", "s", "ratio", ""]
units = st.sampled_from(UNITS)
amounts = st.floats(0, 1e15, allow_subnormal=False)


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("10ms", "us", 10_000),
        ("3s", "us", 3_000_000),
        ("200us", "us", 200),
        ("200 µs", "us", 200),
        ("1.5min", "us", 90_000_000),
        ("250ns", "us", 0.25),
        ("42", "us", 42),
        ("10ms", "ns", 10_000_000),
        ("2h", "s", 7200),
        ("5k", "bytes", 5_000),
        ("1M", "bytes", 1_000_000),
        ("1m", "bytes", 1_000_000),
        ("2GiB", "bytes", 2 * 1024**3),
        ("2Gi", "bytes", 2 * 1024**3),
        ("10kB", "bytes", 10_000),
        ("10KB", "bytes", 10_000),
        ("1,234,567", "bytes", 1_234_567),
        ("1e6", "bytes", 1_000_000),
        (".5k", "bytes", 500),
        ("1Mb/s", "bytes/s", 125_000),
        ("1Mbit/s", "bytes/s", 125_000),
        ("8kbps", "bytes/s", 1_000),
        ("10kB/s", "bytes/s", 10_000),
        ("1MiB/s", "bytes/s", 1024**2),
        ("1k", "bytes/s", 1_000),
        ("1M/s", "bytes/s", 1_000_000),
        ("3.3k", "packets", 3_300),
        ("312 kp/s", "packets/s", 312_000),
        ("100/s", "packets/s", 100),
        ("1%", "ratio", 0.01),
        ("0.01", "ratio", 0.01),
        ("3.1%", "ratio", 0.031),
        ("1k", "", 1_000),
    ],
)
def test_amounts_are_read_in_base_units(text: str, unit: str, amount: float) -> None:
    """Every way of writing that the documents promise."""
    assert parse_quantity(text, unit) == pytest.approx(amount)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("", "us"),
        ("ms", "us"),
        ("10 parsecs", "us"),
        ("10ms", "bytes"),
        ("10Mb", "bytes"),  # a bit is no amount of bytes: somebody mistyped B
        ("10B", "us"),
        ("1%", "bytes"),
        ("-5", "bytes"),
        ("1.2.3", "bytes"),
        ("1,23", "bytes"),
        ("nan", "us"),
        ("٣", "us"),
    ],
)
def test_a_bad_amount_is_a_usage_error_with_an_example(text: str, unit: str) -> None:
    """The error quotes the text and shows how to write it."""
    with pytest.raises(UsageError) as caught:
        parse_quantity(text, unit)
    assert repr(text) in caught.value.what
    assert caught.value.remedy.startswith("write it like")


@given(st.text(), units)
def test_no_text_breaks_the_parser(text: str, unit: str) -> None:
    """Any input is an amount or a UsageError, never another error."""
    with contextlib.suppress(UsageError):
        assert parse_quantity(text, unit) >= 0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (38.2e6 / 8, "bytes/s", "38.2 Mb/s"),
        (410e3 / 8, "bytes/s", "410 kb/s"),
        (4.4e6 / 8, "bytes/s", "4.4 Mb/s"),
        (1.93e9 / 8, "bytes/s", "1.93 Gb/s"),
        (0, "bytes/s", "0 b/s"),
        (1_200_000, "bytes", "1.2 MB"),
        (999, "bytes", "999 B"),
        (2**64, "bytes", "18.4 EB"),
        (21_400, "us", "21.4 ms"),
        (312, "us", "0.3 ms"),
        (34, "us", "34 µs"),
        (184_000, "us", "184 ms"),
        (1_020_000, "us", "1.02 s"),
        (4_100, "ns", "4.1 µs"),
        (3_312, "packets", "3.3 k"),
        (410, "packets", "410"),
        (0.94, "packets", "0.9"),
        (0.95, "packets", "1"),
        (312_000, "packets/s", "312 kp/s"),
        (0.031, "ratio", "3.1%"),
        (0.0, "ratio", "0.0%"),
        (0.0002, "ratio", "0.02%"),
        (0.00001, "ratio", "<0.01%"),
        (1.0, "ratio", "100%"),
        (9.96e9, "packets", "9.96 G"),
        (9.994e9, "packets", "9.99 G"),
        (9.996e9, "packets", "10.0 G"),
        (99.94e9, "packets", "99.9 G"),
        (99.96e9, "packets", "100 G"),
        (999.6, "packets", "1.0 k"),
        (999_960, "packets", "1.0 M"),
        (999_600, "us", "1.00 s"),
        (99.6, "us", "0.1 ms"),
        (8_214, "", "8,214"),
        (1812, "unheard of", "1,812"),
        (None, "us", "–"),
    ],
)
def test_screens_show_amounts_as_the_sketches_do(value: float | None, unit: str, text: str) -> None:
    """The numbers of the sketches of the screens."""
    assert human(value, unit) == text


@given(amounts, units)
def test_formatted_amounts_parse_back(value: float, unit: str) -> None:
    """A cell typed into the filter means nearly the value it shows: within half of its last digit."""
    text = human(value, unit)
    if text.startswith("<"):
        assert 0 < value < parse_quantity(text[1:], unit)
    else:
        # The coarsest: one decimal, from 0.1 on; two digits of µs; a base unit to the whole.
        assert parse_quantity(text, unit) == pytest.approx(
            value, rel=0.06, abs=5.1e-4 if unit == "ratio" else 0.51
        )


@given(
    st.floats(0, 1e17, allow_subnormal=False), st.sampled_from(["bytes", "bytes/s", "packets", "packets/s"])
)
def test_amounts_keep_a_steady_width(value: float, unit: str) -> None:
    """Four characters of number at most, so that a column never jumps."""
    assert len(human(value, unit).split(" ")[0]) <= 4


@given(amounts, units, st.integers(1, 12))
def test_an_amount_is_never_wider_than_its_column(value: float, unit: str, width: int) -> None:
    """The text fits any width, and a nonzero value is never shown as zero."""
    text = human(value, unit, width)
    assert len(text) <= width
    if value > 0:
        assert not text.startswith("0") or text.startswith("0.")
    if len(human(value, unit)) <= width:
        assert text == human(value, unit)


@pytest.mark.parametrize(
    ("width", "text"), [(8, "988 Mb/s"), (7, "988Mb/s"), (6, "988M"), (4, "988M"), (3, "…")]
)
def test_a_narrow_column_keeps_the_number_and_its_prefix(width: int, text: str) -> None:
    """The blank goes first, then the unit but for its prefix."""
    assert human(987.6e6 / 8, "bytes/s", width) == text


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_amounts_are_shown_in_order(first: float, other: float) -> None:
    """A larger value never shows as a smaller one."""
    small, large = sorted((first, other))
    shown = [parse_quantity(human(value, "bytes").lstrip("<"), "bytes") for value in (small, large)]
    assert shown[0] <= shown[1]


@pytest.mark.parametrize(
    ("value", "deviation", "text"),
    [
        (21_400, 3_100, "21.4 ±3.1 ms"),
        (312, 100, "0.3 ±0.1 ms"),
        (184_000, 62_000, "184 ±62 ms"),
        (34, 8, "34 ±8 µs"),
        (21_400, None, "21.4 ms"),
        (None, 5, "–"),
    ],
)
def test_a_deviation_is_on_the_scale_of_its_value(
    value: float | None, deviation: float | None, text: str
) -> None:
    """Both values have one unit, so that they are easy to compare."""
    assert human_spread(value, deviation, "us") == text


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("bytes_sent", "bytes"),
        ("bytes_sent_per_s", "bytes/s"),
        ("retransmits_per_s", "packets/s"),
        ("retransmit_ratio", "ratio"),
        ("rtt", "us"),
        ("owner", ""),
        ("process", ""),
    ],
)
def test_every_column_knows_its_unit(name: str, unit: str) -> None:
    """Rates, ratios and groups get theirs from what they are made of."""
    assert unit_of(SOCKETS, name) == unit


def test_infinity_is_refused() -> None:
    """A number of any length is an amount; nothing overflows."""
    assert parse_quantity("9" * 400, "bytes") == math.inf


def test_time_of_a_time_is_a_share_of_one_cpu() -> None:
    """The rate of a counter of CPU time: shown and given in percent, raw in ns/s."""
    assert [human(rate, "ns/s") for rate in (0, 12_300_000, 1_234_000_000)] == ["0%", "1.23%", "123%"]
    assert parse_quantity("1.5%", "ns/s") == 15_000_000
    assert parse_quantity("200", "ns/s") == 200
    assert (human(985_000, "us/s"), parse_quantity("90%", "us/s")) == ("98.5%", 900_000)
