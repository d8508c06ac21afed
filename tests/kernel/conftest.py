# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel tests: a lab of their own for each test, and a reason where the machine cannot run them."""

from collections.abc import Iterator

import pytest

from .lab import Lab, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `kernel` where this machine truly lacks something, and says what."""
    reason = missing()
    for item in items:
        if reason and item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Namespaces and workers of this test; gone at its end."""
    with Lab() as made:
        yield made
