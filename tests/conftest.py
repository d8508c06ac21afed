"""What all tests share: the markers."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declares the markers, so that a misspelt one fails under --strict-markers."""
    config.addinivalue_line(
        "markers", "kernel: needs root and a real kernel; makes its own network namespaces"
    )
