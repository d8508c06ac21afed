# SPDX-License-Identifier: Apache-2.0
"""`nettop diff` of a recording of this kernel, during which things change for real."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nettop.errors import ExitCode
from nettop.recording.reader import RecordedFile
from nettop.recording.recording import Recording
from nettop.snapshots.connections import LENS as CONNECTIONS

from .command import Running, nettop
from .fault_loads import LOADS
from .faults import FAULTS, made
from .lab import Lab, until

pytestmark = pytest.mark.kernel

INTERVAL_S, SPAN_S = 0.25, 8
SLOW, DROPS = (
    next(fault for fault in FAULTS if fault.name == name) for name in ("slow-service", "firewall-drop")
)


@contextmanager
def talking() -> Iterator[None]:
    """Have iperf3 send to another host."""
    load = LOADS["iperf3"]
    if why := load.lacks():
        pytest.skip(why)
    with Lab() as lab, load.running(lab):
        yield


def recorded_until_s(path: Path) -> float:
    """Return the time of the last reading of the connections; 0 before the first."""
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("rb") as file:
        recording = Recording([RecordedFile(file.fileno())])
        return (
            max(recording.moments_between(CONNECTIONS, recording.begin_ns, recording.end_ns), default=0) / 1e9
        )


def span(path: Path) -> str:
    """Let a span be recorded that begins now; return its beginning as words for diff."""
    begin = time.time() + INTERVAL_S
    until(lambda: recorded_until_s(path) > begin + SPAN_S, "a span is recorded", 60)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(begin + 1))


@pytest.mark.walks
def test_what_changed_on_this_host_comes_first(tmp_path: Path) -> None:
    """A new talker, drops by a firewall, and a service that gets slower: each among the first three changes."""
    path = tmp_path / "a.nettop"
    changes = {"traffic": ("iperf3", talking), "drops": ("NETFILTER_DROP", lambda: made(DROPS))}
    with (
        made(SLOW) as scene,
        Running("record", "--interval", str(INTERVAL_S), str(path), cwd=tmp_path) as recorder,
    ):
        until(lambda: recorded_until_s(path) or recorder.process.poll() is not None, "it records")
        spans = {"calm": span(path)}
        for topic, (_, change) in changes.items():
            with change():
                spans[topic] = span(path)
        scene.worsen()
        spans["services"] = span(path)
        assert recorder.end() == 0, recorder.errors()
    for topic, who in {**{topic: who for topic, (who, _) in changes.items()}, "services": "webapp"}.items():
        words = ("diff", path, spans["calm"], spans[topic], "--span", f"{SPAN_S - 2}s", "--format", "jsonl")
        done = nettop(*map(str, words))
        assert done.returncode == ExitCode.FAILURE, done.stderr
        first = [json.loads(line) for line in done.stdout.splitlines()[:3]]
        print(
            topic,
            *(f"{difference['certainty']}: {difference['sentence']}" for difference in first),
            sep="\n  ",
        )
        assert any(difference["topic"] == topic and who in difference["sentence"] for difference in first), (
            first
        )
