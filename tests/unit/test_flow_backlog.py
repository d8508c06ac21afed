# SPDX-License-Identifier: Apache-2.0
"""Datagrams queued on disk: none is lost or duplicated, and they stay in order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.collector import backlog as backlog_module
from nettop.collector import inputs as exports_module
from nettop.collector.backlog import Backlog
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.inputs import Exports
from nettop.collector.receive import ReceiveCounts
from nettop.errors import SourceFailed, UsageError
from tests.builders.exports import NETFLOW_5
from tests.builders.flow_messages import SENDER, Sent, batch

from .test_flow_pipeline import Run
from .test_flow_receive import received

LARGE = 1 << 30
SENT = st.builds(Sent, st.binary(min_size=16, max_size=16), st.integers(0, 65_535), st.binary(max_size=300))


def all_of(backlog: Backlog) -> list[Sent]:
    """Remove and return all queued datagrams."""
    taken = []
    while not backlog.is_empty:
        taken += received(backlog.take())
    return [Sent(*reading) for reading in taken]


@contextmanager
def files_of(size: int) -> Iterator[None]:
    """Append to files only up to this size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlog_module, "FILE_BYTES", size)
        yield


@given(st.lists(st.lists(SENT, max_size=5), max_size=8), st.integers(1, 2000), st.integers(0, 8))
def test_datagrams_are_taken_as_they_were_put(
    batches: list[list[Sent]], file_bytes: int, before: int
) -> None:
    """Senders, ports, contents and times are kept in order, also when another process continues."""
    with tempfile.TemporaryDirectory() as folder, files_of(file_bytes):
        directory = Path(folder)
        first = Backlog(directory, LARGE)
        for some in batches[:before]:
            assert first.put(batch(some))
        backlog = Backlog(directory, LARGE)
        assert backlog.datagrams == first.datagrams == sum(map(len, batches[:before]))
        for some in batches[before:]:
            assert backlog.put(batch(some))
        assert backlog.datagrams == sum(map(len, batches))
        assert all_of(backlog) == [datagram for some in batches for datagram in some]
        assert (backlog.datagrams, list(directory.iterdir())) == (0, [])


def test_times_are_kept(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path, LARGE)
    sent = batch([Sent(SENDER, 7, b"a")])
    backlog.put(sent)
    assert backlog.take().received_ns.tolist() == sent.received_ns.tolist()


def test_an_incomplete_batch_is_skipped(tmp_path: Path) -> None:
    """A process may be killed while writing; the next one writes after the last complete record."""
    for kept in range(1, 59):
        backlog = Backlog(tmp_path, LARGE)
        backlog.put(batch([Sent(SENDER, 7, b"whole")]))
        (path,) = tmp_path.iterdir()
        whole = path.stat().st_size
        backlog.put(batch([Sent(SENDER, 7, b"cut off" * 3)]))
        assert path.stat().st_size > whole + kept
        with path.open("r+b") as file:
            file.truncate(whole + kept)
        after = Backlog(tmp_path, LARGE)
        assert after.datagrams == 1
        after.put(batch([Sent(SENDER, 7, b"next")]))
        assert [datagram.data for datagram in all_of(after)] == [b"whole", b"next"]


def test_it_is_bounded(tmp_path: Path) -> None:
    """The queue is full at its bound, and has room again once something is taken."""
    with files_of(1):
        backlog = Backlog(tmp_path, 1000)
        count = 0
        while not backlog.is_full:
            backlog.put(batch([Sent(SENDER, 7, bytes(100))]))
            count += 1
        assert 1000 <= sum(path.stat().st_size for path in tmp_path.iterdir()) < 1200
        assert Backlog(tmp_path, 1000).is_full
        backlog.take()
        assert (backlog.is_full, backlog.datagrams) == (False, count - 1)


def test_a_failing_disk(tmp_path: Path) -> None:
    """A failed write is rejected as a whole; a failed read is an error that names the file."""
    directory = tmp_path / "backlog"
    backlog = Backlog(directory, LARGE)
    backlog.put(batch([Sent(SENDER, 7, b"first")]))
    shutil.rmtree(directory)
    assert not backlog.put(batch([Sent(SENDER, 7, b"second")]))
    assert backlog.datagrams == 1
    with pytest.raises(SourceFailed, match=r"cannot read the datagrams in .*\.datagrams"):
        backlog.take()
    assert not backlog.put(batch([Sent(SENDER, 7, b"third")]))
    assert backlog.is_empty
    with pytest.raises(UsageError, match="cannot store datagrams"):
        Backlog(Path("/dev/null/backlog"), LARGE)


class Arrivals:
    """A fake receiver: batches, and whether the sockets are still full after each."""

    def __init__(self, *batches: tuple[Sequence[Sent], bool]) -> None:
        self.counts = (ReceiveCounts("here"),)
        self.timeouts: list[float | None] = []
        self._batches = list(batches)
        self._is_behind = False

    def receive(self, timeout_s: float | None = None) -> Datagrams:
        """Return the next batch."""
        self.timeouts.append(timeout_s)
        some, self._is_behind = self._batches.pop(0) if self._batches else ((), False)
        return batch(list(some))

    def is_behind(self) -> bool:
        """Return what the last batch says."""
        return self._is_behind

    def drops(self) -> tuple[int, ...]:
        """Return no drops."""
        return (0,)


def flow(sequence: int) -> Sent:
    """Return a NetFlow v5 flow with this number."""
    return Sent(SENDER, 7, NETFLOW_5[:16] + sequence.to_bytes(4, "big") + NETFLOW_5[20:])


def sequences(run: Run) -> list[int]:
    """Return the numbers of the decoded flows, in order."""
    run.write()
    rows, _ = run.taken()
    return list(dict.fromkeys(row["sequence"] for row in rows.get("flows_raw", [])))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a pipeline."""
    return Run(tmp_path / "run")


def exports(
    monkeypatch: pytest.MonkeyPatch, directory: Path, arrivals: Arrivals, most_bytes: int = LARGE
) -> Exports:
    """Return an input that receives these arrivals."""
    monkeypatch.setattr(exports_module, "Receiver", lambda *_: arrivals)
    nothing: Any = None
    return Exports([], lambda: Backlog(directory, most_bytes), nothing)


def test_a_backlog_waits_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    """While the sockets fill, nothing is decoded; then everything is, in order, including what arrived meanwhile."""
    arrivals = Arrivals(([flow(1)], False), ([flow(2)], True), ([flow(3)], True), ([flow(4)], False))
    input_ = exports(monkeypatch, tmp_path / "backlog", arrivals)
    assert input_.receive(run.pipeline, 9)
    assert input_.receive(run.pipeline, 9)
    assert input_.receive(run.pipeline, 9)
    input_.count(run.pipeline)
    assert run.pipeline.queued == 2
    assert sequences(run) == [1]
    assert input_.receive(run.pipeline, 9)
    input_.count(run.pipeline)
    assert run.pipeline.queued == 0
    assert sequences(run) == [2, 3, 4]
    assert not input_.receive(run.pipeline, 9)
    # With something to decode, it does not wait.
    assert arrivals.timeouts == [9, 9, 0, 0, 9]


def test_datagrams_of_an_earlier_process_come_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    Backlog(tmp_path / "backlog", LARGE).put(batch([flow(1)]))
    input_ = exports(monkeypatch, tmp_path / "backlog", Arrivals(([flow(2)], False)))
    input_.receive(run.pipeline, 9)
    assert sequences(run) == [1, 2]


def test_a_full_disk_leaves_datagrams_in_the_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    """Queued datagrams are decoded to make room even though the sockets are full; nothing is received before."""
    arrivals = Arrivals(([flow(1)], True), ([flow(2)], False))
    input_ = exports(monkeypatch, tmp_path / "backlog", arrivals, most_bytes=1)
    assert input_.receive(run.pipeline, 9)
    assert sequences(run) == [1]
    assert len(arrivals.timeouts) == 1
    assert input_.receive(run.pipeline, 9)
    assert sequences(run) == [2]


def test_datagrams_are_decoded_at_once_if_the_disk_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    input_ = exports(monkeypatch, tmp_path / "backlog", Arrivals(([flow(1)], True)))
    shutil.rmtree(tmp_path / "backlog")
    assert input_.receive(run.pipeline, 9)
    assert sequences(run) == [1]
