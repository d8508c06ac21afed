# SPDX-License-Identifier: Apache-2.0
"""Debian's Prometheus, run with a given configuration."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kernel.lab import until

from .tools import debian_package

READY = "ready to receive web requests"
LISTENING = re.compile(r'msg="Listening on" address=127.0.0.1:(\d+)')


def is_ready(said: str) -> bool:
    """Return whether Prometheus has said that it is ready, and where it listens."""
    return READY in said and LISTENING.search(said) is not None


@contextmanager
def running_prometheus(config: Path, around: Sequence[str] = ()) -> Iterator[str]:
    """Run Prometheus and yield its API's URL. Its data is next to `config`; `around` prefixes the command."""
    said = config.with_name("said")
    words = (
        *around,
        str(debian_package("prometheus") / "usr/bin/prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={config.with_name('data')}",
        "--web.listen-address=127.0.0.1:0",
    )
    with said.open("wb") as errors:
        process = subprocess.Popen(words, stderr=errors, start_new_session=True)
    try:
        until(lambda: is_ready(said.read_text()) or process.poll() is not None, "Prometheus is ready", 60)
        listening = LISTENING.search(said.read_text())
        assert listening, said.read_text()
        yield f"http://127.0.0.1:{listening[1]}/api/v1"
    finally:
        process.kill()
        process.wait()
