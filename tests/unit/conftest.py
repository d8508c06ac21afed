# SPDX-License-Identifier: Apache-2.0
"""A browser, and the capabilities of a made host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nettop.kernel.host import privileges
from tests.unit.chromium import CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield the distribution's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def made_capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this thread's capabilities from the status file of the made host, if there is one."""
    status = tmp_path / "proc/thread-self/status"
    for name, label in (("effective", "CapEff"), ("held", "CapPrm")):
        own = getattr(privileges, name)
        monkeypatch.setattr(privileges, name, partial(_read_capabilities, status, label, own))


def _read_capabilities(status: Path, label: str, own: Callable[[], frozenset[int]]) -> frozenset[int]:
    if not status.exists():
        return own()
    mask = int("".join(re.findall(rf"^{label}:\s*(\S+)", status.read_text(), re.MULTILINE)) or "0", 16)
    return frozenset(number for number in range(64) if mask >> number & 1)
