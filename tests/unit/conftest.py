# SPDX-License-Identifier: Apache-2.0
"""How the property tests run: the same examples each time, or new ones when somebody explores; and a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.unit.chromium import CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A busy machine is no failure, so nothing is timed.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("repeat", derandomize=True, **_PATIENT)
settings.register_profile("explore", max_examples=3000, **_PATIENT)
settings.load_profile(os.environ.get("NETTOP_PROPERTY_TESTS", "repeat"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
