# SPDX-License-Identifier: Apache-2.0
"""The environment of screen tests, in which every terminal looks the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nettop.query.units import show_rates


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No colour wishes, no odd terminal, UTF-8, rates in bits: the screenshots depend on the test alone."""
    for name in ("NO_COLOR", "COLORFGBG", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("nettop.widgets.glyphs.locale.getencoding", lambda: "utf-8")
    yield
    show_rates(in_bytes=False)
