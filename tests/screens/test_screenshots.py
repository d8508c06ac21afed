# SPDX-License-Identifier: Apache-2.0
"""Pictures of the screens, each in two sizes at most, and the words of states that need no picture.

`pytest tests/screens --snapshot-update` draws the pictures anew; look at each before it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.builders.driving import press, screen_text
from tests.builders.pictures import EXAMPLES, NARROW, WIDE, player

Size = tuple[int, int]


class Picture(NamedTuple):
    """A view of an example after some keys, in these sizes and colours."""

    example: str
    view: str
    keys: str = ""
    sizes: tuple[Size, ...] = (NARROW, WIDE)
    theme: str = "nettop-dark"
    no_color: bool = False


STAGE = "down down down down down down"
PICTURES = {
    "connections": Picture("busy", "connections", "down down down"),
    "connections-details": Picture("busy", "connections", "down right"),
    "connections-light": Picture("busy", "connections", "down", (NARROW,), "nettop-light"),
    "connections-terminal": Picture("busy", "connections", "down", (NARROW,), "nettop-terminal"),
    "connections-no-color": Picture("busy", "connections", "down right", (NARROW,), "nettop-terminal", True),
    "connections-hostile-names": Picture("hostile", "connections", "down", (NARROW,)),
    "filter-with-error": Picture("busy", "connections", "slash r t t _ u s > f a s t", (NARROW,)),
    "palette": Picture("busy", "connections", "ctrl+p r t t", (NARROW,)),
    "help": Picture("busy", "connections", "question_mark", (WIDE,)),
    "events": Picture("eventful", "connections.events", "down down down"),
    "failures": Picture("eventful", "connections.failures"),
    "groups": Picture("eventful", "connections.groups"),
    "bandwidth": Picture("bandwidth", "bandwidth", "down down"),
    "bandwidth-protocols": Picture("bandwidth", "bandwidth.protocols", "down"),
    "bandwidth-services": Picture("bandwidth", "bandwidth.services", "down"),
    "bandwidth-flows": Picture("bandwidth", "bandwidth.flows", "down"),
    "cpu": Picture("cpu", "cpu", STAGE),
    "cpu-zoomed": Picture("cpu", "cpu", f"u {STAGE} down right down down"),
    "cpu-search": Picture("cpu", "cpu", "slash n f _ space c o p y enter", (WIDE,)),
    "cpu-no-color": Picture("cpu", "cpu", f"u {STAGE}", (WIDE,), "nettop-terminal", True),
    "cpu-numbers": Picture("cpu", "cpu", "n down", (WIDE,)),
    "cpu-stacks": Picture("cpu", "cpu.stacks", "down", (WIDE,)),
    "findings-strip": Picture("findings", "connections"),
    "findings": Picture("findings", "connections", "0 down down down right"),
    "findings-evidence": Picture("findings", "connections", " ".join(["exclamation_mark"] * 3), (NARROW,)),
    "collector": Picture("flows", "collector", "down down"),
    "collector-ledger": Picture("flows", "collector.ledger", "", (NARROW,)),
    "latency": Picture("latency", "latency", STAGE),
    "latency-opened": Picture("latency", "latency", f"{STAGE} right down"),
    "latency-pairs": Picture("latency", "latency.pairs", "down"),
    "latency-buckets": Picture("latency", "latency.buckets", "down"),
    "latency-in-part": Picture("latency in part", "latency", "down", (NARROW,)),
    "latency-no-color": Picture("latency", "latency", STAGE, (NARROW,), "nettop-terminal", True),
    "services": Picture("services", "services", "down"),
    "services-clients": Picture("services", "services.clients", "down"),
    "services-waiting": Picture("services", "services.waiting", "down"),
}


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        pytest.param(picture, size, id=f"{name}-{size[0]}x{size[1]}")
        for name, picture in PICTURES.items()
        for size in picture.sizes
    ],
)
def test_picture(
    snap_compare: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, picture: Picture, size: Size
) -> None:
    """The screen has every character and colour of the stored picture."""
    if picture.no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    example = EXAMPLES[picture.example]()
    app, harness = example.app(picture.view, picture.theme)
    play = player(harness, picture.keys.split(), len(example.steps))
    assert snap_compare(app, terminal_size=size, run_before=play)


STATES = {
    ("busy", "connections", "a t s"): """
        PROCESS ▴ PROTO LOCAL REMOTE SENT RECEIVED RATE RTT ±VAR RETR LIMITED BY LIMITED STATE
        curl 30991 tcp 10.0.3.7:41822 * – – – – – – LISTEN ▐""",
    ("calm", "connections", "0"): """
        problems 0 warnings 0 hints 0 not watched: Drops 5 0 missed
        nothing is wrong, as far as nettop sees; p shows how near the kernel's limits are""",
    ("eventful", "connections.failures", "down right down"): """
        opened 31/s closed 29/s failed 2/s events 120 0 missed
        ◆11:06:41.027 ▲ fail refused java 2210 10.0.3.7:40113 10.0.9.4:9092 411 ms 0 B 0 B 0 4026531840
        11-17 11:06 ▲ fail refused java 2210 10.0.3.7:40003 10.0.9.4:9092 685 ms 0 B 0 B 0 4026531840
        ─ total 12""",
    ("bandwidth", "bandwidth", "down right"): """
        ─ total 6 PKTS IN 4.1 M 27.7 kp/s
        wg0 TCX 641 kb/s 2.7 Mb/s – – 334 p/s 305 p/s 0 p/s MODE XDP native""",
    ("cpu", "cpu.categories", "down"): """
        ENTRY CATEGORY OF ENTRY SHARE SAMPLES ▾ NOTE
        ▸RX syscalls TCP 76.7% 9.63% 198
        NAPI threads driver poll 61.1% 0.70% 22""",
    ("cpu", "cpu.processes", "down"): """
        network 15.8% of 4 CPUs (0.63 cores) processes 5 softirqs 35.6% (no process) 0 missed
        ▸iperf3 4127 40.5% 14.1% 11.4% 15.0% 0%
        (no process) – 11.6% – – 11.6% –
        ─ total 6 63.4% 15.8% 12.9% 32.6% 2.10%""",
    ("latency", "latency.pairs", "down right"): """
        wire-app 10.0.9.4 10.0.3.7 tcp 590 µs 7.9 ms 62.9 ms P99 151 ms MAX 872 ms
        ─ total 10 49152-57344:12717 57344-65536:13560 65536-81920:29207""",
    ("flows", "collector", "down down right"): """
        192.0.2.99 NetFlow 5 216,720 360 12 p/s 0 11:06:42.123456 LAST 2026-11-18T11:06:42.123456Z
        ─ total 7 52,765,300 87,650 4.5 kp/s WAITING 2 FORGOTTEN –""",
    ("no collector", "collector", ""): """
        n/a here: start nettop collect: none answers at http://127.0.0.1:9472""",
    ("services", "services", "down right"): """
        waiting 7 not read 6 oldest 3.02 s 0 missed
        services → waiting clients connections waiting p next / service=3 7 of 14 Esc clears
        3.02 s orders 1812 served yes 172.17.0.2:8000 172.17.0.1:41200 11:08:07.106456 no 3 docker:4f1c22a09b7e""",
    ("no services", "services", ""): """
        ─ total 0
        n/a here: the kernel has no BTF""",
}
"""Lines of an example in a view, after some keys, with one space between words."""


@pytest.mark.parametrize(
    ("example", "view", "keys", "lines"),
    [(*how, lines) for how, lines in STATES.items()],
    ids=map(" ".join, STATES),
)
async def test_state(example: str, view: str, keys: str, lines: str) -> None:
    """The screen has these lines."""
    async with EXAMPLES[example]().run(view, WIDE) as run:
        await press(run, *keys.split())
        seen = [" ".join(line.split()) for line in screen_text(run).splitlines()]
    assert {line.strip() for line in lines.strip().splitlines()} <= set(seen)


@pytest.mark.parametrize("example", ["busy", "findings", "cpu", "latency"])
async def test_no_sign_needs_utf8_outside_it(monkeypatch: pytest.MonkeyPatch, example: str) -> None:
    """Where the locale is not UTF-8, the screen consists of ASCII characters."""
    monkeypatch.setattr("nettop.widgets.glyphs.locale.getencoding", lambda: "ISO-8859-1")
    view = "connections" if example in ("busy", "findings") else example
    async with EXAMPLES[example]().run(view, NARROW) as run:
        await press(run, "down", "space")
        assert screen_text(run).isascii()
