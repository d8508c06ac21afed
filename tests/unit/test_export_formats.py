# SPDX-License-Identifier: Apache-2.0
"""Formats of exports: folded lines, speedscope's JSON against its schema, the flame graph as XML."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from hypothesis import given

from nettop.snapshots.cpu import CATEGORIES, RX_SOFTIRQ, TX_SYSCALLS
from nettop.stacks.colours import FRAMES
from nettop.stacks.counts import StackCount, flame_tree, path_of
from nettop.stacks.exports import folded, speedscope
from nettop.stacks.flame_svg import WIDTH, flame_svg
from tests.builders import example_stacks
from tests.builders.example_stacks import profile

SCHEMA = json.loads(Path(__file__).with_name("speedscope.schema.json").read_text(encoding="utf-8"))
SVG = "{http://www.w3.org/2000/svg}"
LINE = re.compile(r"(?P<stack>[^;\n]+(?:;[^;\n]+)*) (?P<count>[1-9][0-9]*)")
"""As flamegraph.pl splits it: the count is after the last space, no name is empty."""

FEW = [
    StackCount(RX_SOFTIRQ, 0, ("net_rx_action", "tcp_v4_rcv"), 12, 3, 3_000_000),
    StackCount(RX_SOFTIRQ, 1, ("net_rx_action", "tcp_v4_rcv"), 12, 4, 4_000_000),
    StackCount(TX_SYSCALLS, 1, ("tcp_sendmsg", "memcpy"), 12, 1, 1_000_000),
]


def samples_by_path(counts: list[StackCount]) -> Counter[tuple[str, ...]]:
    """Return samples of each distinct stack, summed over all CPUs."""
    actual: Counter[tuple[str, ...]] = Counter()
    for count in counts:
        actual[path_of(count)] += count.samples
    return actual


# --- folded -------------------------------------------------------------------------------------------------------


def test_folded() -> None:
    """A folded line has the entry point, the functions and the count; CPUs are summed up."""
    assert folded(profile(FEW)) == (
        "RX softirq;net_rx_action;tcp_v4_rcv 7\n"
        "TX syscalls;tcp_sendmsg;memcpy 1\n"
    )  # fmt: skip


@given(example_stacks.counts)
def test_folded_lines_can_be_parsed(counts: list[StackCount]) -> None:
    """Every line has the format, and all of them together equal the stacks."""
    lines = [LINE.fullmatch(line) for line in folded(profile(counts)).splitlines()]
    read = {tuple(line["stack"].split(";")): int(line["count"]) for line in lines if line is not None}
    assert len(read) == len(lines)
    assert read == samples_by_path(counts)


# --- speedscope ---------------------------------------------------------------------------------------------------


def test_speedscope() -> None:
    """One sampled profile in ns; a function with a category has that as its file."""
    read = json.loads(speedscope(profile(FEW)))
    assert read["shared"]["frames"] == [
        {"name": "RX softirq"},
        {"name": "net_rx_action", "file": "softirq loop"},
        {"name": "tcp_v4_rcv", "file": "TCP"},
        {"name": "TX syscalls"},
        {"name": "tcp_sendmsg", "file": "TCP"},
        {"name": "memcpy"},
    ]
    (only,) = read["profiles"]
    assert (only["samples"], only["weights"]) == ([[0, 1, 2], [3, 4, 5]], [7_000_000, 1_000_000])
    assert (only["unit"], only["startValue"], only["endValue"]) == ("nanoseconds", 0, 8_000_000)


@given(example_stacks.counts)
def test_speedscope_conforms_to_the_schema(counts: list[StackCount]) -> None:
    """The export conforms to the published schema, and its indices and weights are consistent."""
    read = json.loads(speedscope(profile(counts)))
    jsonschema.validate(read, SCHEMA)
    (only,) = read["profiles"]
    names = [frame["name"] for frame in read["shared"]["frames"]]
    stacks = [tuple(names[place] for place in stack) for stack in only["samples"]]
    assert len(only["weights"]) == len(stacks) == len(set(stacks))
    assert only["endValue"] == sum(only["weights"]) == sum(count.time_ns for count in counts)
    assert set(stacks) == set(samples_by_path(counts))


# --- the picture --------------------------------------------------------------------------------------------------


def frames_of(svg: str) -> list[ET.Element]:
    """Return the frames of a flame graph, in their order."""
    return ET.fromstring(svg).findall(f"{SVG}g[@id='frames']/{SVG}g")


def test_svg() -> None:
    """Each frame has its label and details, and lies within its parent."""
    frames = frames_of(flame_svg(profile(FEW)))
    reported = [(frame.get("data-label"), frame.get("data-at"), frame.get("data-of")) for frame in frames]
    assert reported == [
        ("all", "0", "8"),
        ("RX softirq", "0", "7"),
        ("O net_rx_action", "0", "7"),
        ("T tcp_v4_rcv", "0", "7"),
        ("TX syscalls", "7", "1"),
        ("T tcp_sendmsg", "7", "1"),
        ("T memcpy", "7", "1"),
    ]
    assert (
        frames[3].findtext(f"{SVG}title")
        == "tcp_v4_rcv · TCP · 7 samples (87.5 %) · 7.0 ms · 0.1 % of one CPU"
    )


@given(example_stacks.counts)
def test_svg_is_complete(counts: list[StackCount]) -> None:
    """The SVG is valid XML with any function names, and has all frames of the tree, none outside the image."""
    svg = flame_svg(profile(counts))
    frames = frames_of(svg)
    assert int(frames[0].get("data-of", "")) == flame_tree(counts).samples
    for frame in frames:
        box = frame.find(f"{SVG}rect")
        assert box is not None
        assert 0 <= float(box.get("x", "")) <= float(box.get("x", "")) + float(box.get("width", "")) <= WIDTH


def test_svg_is_self_contained() -> None:
    """The SVG has no URLs except XML namespaces; names that look like markup are text."""
    hostile = StackCount(RX_SOFTIRQ, 0, ("</title><script>alert(1)</script>", "]]>", "a\x00b\ufffe"), 0, 5, 5)
    svg = flame_svg(profile([hostile]))
    assert set(re.findall(r"https?://[^\"'\s<]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
    }
    root = ET.fromstring(svg)
    assert len(root.findall(f".//{SVG}script")) == 1
    assert svg.count("<script") == 1
    labels = [frame.get("data-label") for frame in frames_of(svg)]
    assert labels[2:] == ["· </title><script>alert(1)</script>", "· ]]>", "· a\ufffdb\ufffd"]


def test_narrow_functions_are_counted() -> None:
    """Frames that are too narrow to see are omitted, and their number is shown."""
    wide = StackCount(RX_SOFTIRQ, 0, ("wide",), 0, 1_000_000, 1)
    narrow = [StackCount(RX_SOFTIRQ, 0, (f"narrow{number}", "below"), 0, 3, 1) for number in range(5)]
    svg = flame_svg(profile([wide, *narrow]))
    assert [frame.get("data-label") for frame in frames_of(svg)] == ["all", "RX softirq", "· wide"]
    assert "5 too narrow to draw" in svg


def test_svg_without_samples() -> None:
    """Without samples the flame graph says so."""
    svg = flame_svg(profile([]))
    assert len(frames_of(svg)) == 1
    assert "0 samples" in svg


def test_categories_can_be_reported_apart() -> None:
    """Each category has its own colour and letter, and all that were sampled are in the legend."""
    assert FRAMES.keys() == {item.letter for item in CATEGORIES.values()}
    assert len({light for _, light, _ in FRAMES.values()}) == len(CATEGORIES)
    counts = [StackCount(RX_SOFTIRQ, 0, ("f",), number, 1, 1) for number in CATEGORIES]
    entries = ET.fromstring(flame_svg(profile(counts))).findall(f"{SVG}g[@id='legend']/{SVG}g")
    assert {int(entry.get("data-category", "")) for entry in entries} == set(CATEGORIES)


@pytest.mark.parametrize("colour", [light for _, light, _ in FRAMES.values()])
def test_text_is_readable_on_every_colour(colour: str) -> None:
    """Black text has a contrast of 7:1, as WCAG requires at level AAA."""
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in channels(colour)
    ]
    luminance = sum(weight * item for weight, item in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert (luminance + 0.05) / 0.05 >= 7


def channels(colour: str) -> list[float]:
    """Return red, green and blue of #rrggbb, from 0 to 1."""
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
