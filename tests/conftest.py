# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the terminal's size comes from the terminal, programs speak English, no signal is ignored, and
no example fails for the time it took."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .expected_skips import ONLY_HERE, unexpected

# readline, which pytest imports, sets both in the environment of every child, behind the back of os.environ.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)
    os.unsetenv(size)

# Shells and other programs translate their messages, which tests compare.
os.environ["LC_ALL"] = "C.UTF-8"
os.environ.pop("LANGUAGE", None)

# Under nohup, or in the background of a script, some are ignored, and all children would ignore them too.
for number, default in {
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGTERM: signal.SIG_DFL,
}.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# The same examples each time, in `make test-all` more, or new ones when somebody explores. Nothing is timed: a busy
# machine is no failure.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeat", derandomize=True, max_examples=30, **_PATIENT)
settings.register_profile("thorough", derandomize=True, max_examples=100, **_PATIENT)
settings.register_profile("explore", max_examples=3000, **_PATIENT)
settings.load_profile(os.environ.get("NETTOP_PROPERTY_TESTS", "repeat"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where only expected reasons count, fails for a test that was skipped for another one."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get(ONLY_HERE) or terminal is None:
        return
    skipped = terminal.stats.get("skipped", [])
    if reasons := unexpected(report.longrepr[2].removeprefix("Skipped: ") for report in skipped):
        terminal.section("skipped for reasons that are not in tests/expected_skips.py", red=True)
        terminal.write_line("\n".join(reasons))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def flows_dir() -> Iterator[Path]:
    """A directory for flows, which a collector that is started as root may give to the user that it becomes."""
    with tempfile.TemporaryDirectory(prefix="nettop-flows") as parent:
        os.chmod(parent, 0o755)
        yield Path(parent) / "flows"
