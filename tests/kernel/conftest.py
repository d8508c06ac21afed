# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel tests: a lab of their own for each test, and a reason where the machine cannot run them."""

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import pytest

from .lab import PATIENCE, Lab, Namespace, missing

if TYPE_CHECKING:
    from .services import Watched, WatchedByEach
    from .test_events import Watch

# Tests are root's own, and say themselves who called sudo.
for name in ("SUDO_USER", "SUDO_UID", "SUDO_GID"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `kernel` where this machine truly lacks something, and says what."""
    reason = missing()
    for item in items:
        if item.get_closest_marker("kernel") and (why := reason or too_old(item)):
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes down at once what failed, for whoever has to know of it though this run may never end."""
    if report.failed and (path := os.environ.get("NETTOP_TEST_FAILURES")):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": report.nodeid, "why": report.longreprtext}) + "\n")


def too_old(item: pytest.Item) -> str | None:
    """What this kernel cannot do yet that the test needs; None if it is new enough."""
    for mark in item.iter_markers("since"):
        version, why = mark.args
        if version_numbers(os.uname().release) < version_numbers(version):
            return f"before Linux {version}: {why}"
    return None


def version_numbers(version: str) -> tuple[int, int]:
    """`6.1.0-50-amd64` as (6, 1)."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Namespaces and workers of this test; gone at its end."""
    with Lab() as made:
        yield made


def scope_of_watch(fixture_name: str, config: pytest.Config) -> Literal["session", "module"]:
    """In an emulated machine, where starting one takes half a minute, all modules share it; elsewhere it does not
    attend tests of other modules, which may measure what it costs."""
    return "session" if PATIENCE > 1 else "module"


@pytest.fixture(scope=scope_of_watch)
def one_watch() -> Iterator["Watch"]:
    """A connections probe that many tests share."""
    from .test_events import Watch  # which imports much that other tests do not need

    with Watch() as watch:
        yield watch


@pytest.fixture
def home(lab: Lab) -> Namespace:
    """A namespace in which a server and its clients are."""
    return lab.namespace()


@pytest.fixture
def watched() -> Iterator["Watched"]:
    """A probe of the services lens."""
    from .services import Watched

    with Watched() as probe:
        if probe.status.mechanism is None:
            pytest.skip(f"no mechanism: {probe.status.why}")
        yield probe


@pytest.fixture(scope="module")
def all_watches() -> Iterator["WatchedByEach"]:
    """A probe of the services lens for each mechanism, all attached at once."""
    from .services import WatchedByEach

    with WatchedByEach() as watches:
        yield watches


@pytest.fixture
def watches(all_watches: "WatchedByEach") -> list["Watched"]:
    """Those that are attached."""
    assert all_watches.attached
    return all_watches.attached


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes facts into the report."""

    def write(**facts: object) -> None:
        for name, fact in facts.items():
            record_property(name, fact)

    return write
