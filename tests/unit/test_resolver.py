# SPDX-License-Identifier: Apache-2.0
"""Resolved names of addresses: non-blocking, bounded, and safe to show."""

from __future__ import annotations

import threading

import pytest

from nettop.engine import resolver
from nettop.engine.resolver import Resolver, look_up
from nettop.settings import Format, Settings, TextSettings, ViewSettings
from tests.unit.build import address_pair
from tests.unit.scripted import Scripted, printed, steps


def raw(text: str) -> bytes:
    """Return the address as rows hold it."""
    high, low = address_pair(text)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


PEER = raw("203.0.113.9")
DEADLINE_S = 60
"""Only a test that fails waits so long: a busy machine is slow."""


def test_first_question_does_not_wait() -> None:
    """An unknown name is None at once, and after the time given to wait; it is known once it was found."""
    go = threading.Event()

    def find(address: bytes) -> str:
        go.wait(DEADLINE_S)
        return "peer.example"

    names = Resolver(find)
    assert names(PEER) is None
    names.wait([PEER], 0.01)
    assert names(PEER) is None
    go.set()
    names.wait([PEER], DEADLINE_S)
    assert names(PEER) == "peer.example"


def test_no_name_is_remembered() -> None:
    """An address without a name is looked up once."""
    requested = []
    names = Resolver(requested.append)
    for _ in range(3):
        names.wait([PEER], DEADLINE_S)
        assert names(PEER) is None
    assert requested == [PEER]


def test_waiting_ends_with_the_last_name() -> None:
    """Waiting ends once the last name is found, before the deadline; known addresses are not waited for."""
    go = threading.Event()
    slow = raw("203.0.113.10")
    names = Resolver(lambda address: str(go.wait(DEADLINE_S)) if address == slow else "peer.example")
    names.wait([PEER], DEADLINE_S)
    resolved: list[str | None] = []

    def wait() -> None:
        names.wait([PEER, slow], 2 * DEADLINE_S)
        resolved.append(names(slow))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert names(PEER) == "peer.example"
    go.set()
    thread.join(DEADLINE_S)
    assert resolved == ["True"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names requested the longest ago go first, and more requests than fit are not kept; names are short
    and safe to show."""
    monkeypatch.setattr(resolver, "CAPACITY", 10)
    monkeypatch.setattr(resolver, "PENDING", 3)
    names = Resolver(lambda address: f"\x1b{address.hex()}" + "x" * 500)
    addresses = [raw(f"10.0.0.{last}") for last in range(50)]
    names.wait(addresses, DEADLINE_S)
    assert len(names._names) == 10
    assert names(addresses[-1]) == f"␛{addresses[-1].hex()}" + "x" * 220
    assert len(names._pending) <= 3


def test_unspecified_address_is_nobody() -> None:
    """The addresses of a listener are not looked up."""
    assert look_up(raw("0.0.0.0")) is None
    assert look_up(raw("::")) is None


def test_single_output_waits_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """--resolve --once waits for the names of the addresses that it prints."""
    monkeypatch.setattr("nettop.output.text.Resolver", lambda: Resolver({PEER: "peer.example"}.get))
    view = ViewSettings(columns=("local", "remote"), resolve=True)
    source = Scripted(steps([{"remote_address": "203.0.113.9", "remote_port": 80, "local_port": 1}]))
    output, _ = printed(Settings(view=view, text=TextSettings(Format.CSV, 1)), source)
    assert output.splitlines()[1].endswith(",10.0.3.7:1,peer.example:80")
