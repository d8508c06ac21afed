# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel tests: a lab for each test, and the reason if the machine cannot run them."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Literal

import pytest

from nettop.errors import Unsupported
from nettop.kernel.bpf import program_cache
from nettop.kernel.bpf.program import Loader
from nettop.probes.connections.programs import table_text

from . import bpf_objects
from .command import nettop
from .lab import PATIENCE, Lab, Namespace, missing

if TYPE_CHECKING:
    from .services import Host, Watched, WatchedByEach
    from .test_events import Watch

# Tests are root's own, and say themselves who called sudo.
for name in ("SUDO_USER", "SUDO_UID", "SUDO_GID"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `kernel` if this machine lacks something, and report the reason."""
    reason = missing()
    for item in items:
        if item.get_closest_marker("kernel") and (why := reason or too_old(item)):
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write each failure to a file at once: this run may be killed before its report."""
    if report.failed and (path := os.environ.get("NETTOP_TEST_FAILURES")):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": report.nodeid, "why": report.longreprtext}) + "\n")


def too_old(item: pytest.Item) -> str | None:
    """Return what the test needs and this kernel lacks; None if it is new enough."""
    for mark in item.iter_markers("since"):
        version, why = mark.args
        if version_numbers(os.uname().release) < version_numbers(version):
            return f"before Linux {version}: {why}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `walks` where the kernel refuses the walk over descriptors."""
    if item.get_closest_marker("walks") and (why := why_no_walk()):
        pytest.skip(f"walk: {why}")


@cache
def why_no_walk() -> str:
    """Return why the kernel refuses the walk over the sockets of all descriptors; empty if it does not."""
    try:
        Loader().load(table_text()).close()
    except Unsupported as error:
        return error.what
    return ""


def version_numbers(version: str) -> tuple[int, int]:
    """Parse a version: `6.1.0-50-amd64` gives (6, 1)."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Yield the namespaces and workers of this test, and remove them afterwards."""
    with Lab() as made:
        yield made


def scope_of_watch(fixture_name: str, config: pytest.Config) -> Literal["session", "module"]:
    """Return the scope of the shared watch: the session in an emulated machine, which takes half a minute to start one.

    Elsewhere it is the module, because other modules may measure the watch's cost.
    """
    return "session" if PATIENCE > 1 else "module"


@pytest.fixture(scope=scope_of_watch)
def one_watch() -> Iterator["Watch"]:
    """Yield a connections probe that many tests share."""
    from .test_events import Watch  # which imports much that other tests do not need

    with Watch() as watch:
        yield watch


@pytest.fixture(scope="session", autouse=True)
def all_compiled() -> None:
    """Compile all programs first, so that no nettop of a test does so in the background."""
    if missing() is None and os.access(program_cache.DIRECTORY.parent, os.W_OK):
        done = nettop("compile", deadline_s=120)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def nothing_cached() -> Iterator[None]:
    """Hide the cache of compiled programs, so that each is compiled."""
    try:
        program_cache.DIRECTORY.mkdir(exist_ok=True)
    except OSError:  # a read-only file system, which has no cache
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", program_cache.DIRECTORY], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", program_cache.DIRECTORY], check=True)


@pytest.fixture
def left_clean() -> Iterator[None]:
    """Fail the test if it leaves a BPF program, map or link that no living process holds."""
    before = bpf_objects.existing()
    yield
    bpf_objects.nothing_new_since(before)


@pytest.fixture
def host(lab: Lab) -> "Host":
    """Return a server and its client in a namespace."""
    from .services import Host

    return Host(lab)


@pytest.fixture
def home(lab: Lab) -> Namespace:
    """Return a namespace for a server and its clients."""
    return lab.namespace()


@pytest.fixture
def watched() -> Iterator["Watched"]:
    """Yield a probe of the services lens."""
    from .services import Watched

    with Watched() as probe:
        if probe.status.mechanism is None:
            pytest.skip(f"no mechanism: {probe.status.why}")
        yield probe


@pytest.fixture(scope="module")
def all_watches() -> Iterator["WatchedByEach"]:
    """Yield a probe of the services lens for each mechanism, all attached at once."""
    from .services import WatchedByEach

    with WatchedByEach() as watches:
        yield watches


@pytest.fixture
def watches(all_watches: "WatchedByEach") -> list["Watched"]:
    """Return the probes that are attached."""
    assert all_watches.attached
    return all_watches.attached


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Write facts into the report."""

    def write(**facts: object) -> None:
        for name, fact in facts.items():
            record_property(name, fact)

    return write
