# SPDX-License-Identifier: Apache-2.0
"""`nettop collect` as users run it: received, stored, queried; ended, killed, and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.reader import EXPORTERS_PATH, STATE_PATH, RemoteCollector
from nettop.errors import ExitCode, SourceFailed, UsageError
from tests.builders.exports import DECLARED, NETFLOW_5, SFLOW
from tests.builders.flow_messages import a_set, message, plain
from tests.collecting import PATIENCE_S, Running, until

from .test_flow_exporters import netflow5

pytest.importorskip("chdb")


def no_traceback(running: Running) -> None:
    """Assert that there is no Python traceback."""
    assert "Traceback" not in running.errors(), running.errors()


def test_from_datagrams_to_answers(flows_dir: Path) -> None:
    """Any protocol at one port, stored within seconds; nobody works as root; SIGTERM ends it in order."""
    with Running(flows_dir) as running:
        ipfix = message(IPFIX, DECLARED[IPFIX], a_set(300, plain(11))).data
        running.send(NETFLOW_5, SFLOW, ipfix, b"\0\1rubbish")
        running.stored(5)
        state = running.state()
        assert state["datagrams"] == {
            "arrived": 4,
            "decoded": 3,
            "malformed": 1,
            "refused": 0,
            "queued": 0,
            "dropped_by_kernel": 0,
        }
        assert (state["failure"], state["spool"]) == (None, {"blocks": 0, "bytes": 0})
        assert running.rows(
            "SELECT protocol_version, count(), sum(bytes) FROM flows_raw GROUP BY 1 ORDER BY 1"
        ) == [[5, 2, 784], [10, 1, 11], [105, 2, 3000]]
        assert running.rows("SELECT sum(counters['rows']) FROM ledger") == [[5]]
        exporters = running.collector.document(EXPORTERS_PATH)["exporters"]
        assert sorted((exporter["protocol_version"], exporter["rows"]) for exporter in exporters) == [
            (0, 0),
            (5, 2),
            (10, 1),
            (105, 2),
        ]
        with pytest.raises(UsageError, match="may not use"):
            running.rows("DROP TABLE flows_raw")
        processes = [
            Path("/proc") / pid
            for pid in subprocess.run(
                ["pgrep", "-s", str(running.process.pid)], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        assert len(processes) == 2
        assert all(path.stat().st_uid != 0 for path in processes) or os.geteuid()
        assert all("CapEff:\t0000000000000000" in (path / "status").read_text() for path in processes)
        assert running.end() == ExitCode.DONE
        no_traceback(running)
        assert not (flows_dir / "flows.sock").exists()


def test_everything_received_is_stored_before_the_exit(flows_dir: Path) -> None:
    """Data received before the request to end is stored; a restart remembers templates and rows."""
    with Running(flows_dir) as running:
        port = running.send(message(NETFLOW_9, DECLARED[NETFLOW_9]).data, *[NETFLOW_5] * 97)
        assert running.end(signal.SIGINT) == ExitCode.DONE
        no_traceback(running)
    with Running(flows_dir) as running:
        assert running.rows("SELECT count() FROM flows_raw") == [[2 * 97]]
        running.send(message(NETFLOW_9, a_set(300, plain(7)), sequence=2).data, port=port)
        running.stored(1)
        assert running.rows("SELECT sum(bytes) FROM flows_raw WHERE protocol_version = 9") == [[7]]


def workers_of(running: Running) -> list[int]:
    """Return the PIDs of the processes that receive."""
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_reach_workers_too(flows_dir: Path, number: signal.Signals) -> None:
    """A signal that a terminal or systemd also sends to workers does not end them early, and is no failure."""
    with Running(flows_dir) as running:
        for worker in workers_of(running):
            os.kill(worker, number)
        running.send(NETFLOW_5)
        running.stored(2)
        assert running.end() == ExitCode.DONE
        no_traceback(running)


@pytest.mark.parametrize("victim", ["collector", "worker"])
def test_killed(flows_dir: Path, victim: str) -> None:
    """A collector that is killed leaves what its ledger says, no process, and a directory that the next one uses."""
    with Running(flows_dir) as running:
        running.send(*[NETFLOW_5] * 50)
        running.stored(100)
        workers = workers_of(running)
        if victim == "collector":
            assert running.end(signal.SIGKILL) == -signal.SIGKILL
        else:
            os.kill(workers[0], signal.SIGKILL)
            assert running.process.wait(PATIENCE_S) == ExitCode.SOURCE
            assert "a process that receives flows has exited" in running.errors()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "no process is left")
        no_traceback(running)
    with Running(flows_dir) as running:
        assert running.rows("SELECT count() FROM flows_raw") == [[100]]
        assert running.rows("SELECT sum(counters['rows']) FROM ledger") == [[100]]


@pytest.mark.parametrize("victim", ["collector", "worker", "nobody"])
def test_losses_survive_a_restart(flows_dir: Path, victim: str) -> None:
    """Each flow that an exporter sent counts as stored or lost, however the collector ended."""
    sent = [netflow5(number, 10).data for number in range(0, 4000, 10)]
    with Running(flows_dir) as running:
        port = running.send(*sent[:50])
        running.stored(500)
        running.send(*sent[50:250], port=port)
        if victim == "nobody":
            assert running.end() == ExitCode.DONE
        else:
            pid = running.process.pid if victim == "collector" else workers_of(running)[0]
            os.kill(pid, signal.SIGKILL)
            running.process.wait(PATIENCE_S)
    with Running(flows_dir) as running:
        # The others were sent while nobody received.
        running.send(*sent[350:], port=port)
        running.stored_at_least(500)
        (exporter,) = running.collector.document(EXPORTERS_PATH)["exporters"]
        ((stored,),) = running.rows("SELECT count() FROM flows_raw")
        assert (exporter["restarts"], exporter["unchecked"], exporter["counting"]) == (0, 0, "flows")
        assert stored + exporter["lost"] == 4000
        assert exporter["lost"] >= 1000
        assert victim != "nobody" or exporter["lost"] == 1000
        assert running.end() == ExitCode.DONE


def test_several_workers(flows_dir: Path) -> None:
    """Each exporter's datagrams are received by one of them, as the options say; together they have received all."""
    with Running(flows_dir, "--workers", "3", "--sampling-rate", "127.0.0.1=5") as running:
        for _ in range(60):
            running.send(NETFLOW_5)
        running.stored(120)
        assert sum(counts["datagrams"] for counts in running.state()["sockets"]) == 60
        assert len(running.state()["sockets"]) == 3
        assert running.rows("SELECT DISTINCT sampling_rate FROM flows_raw") == [[5]]
        assert running.end() == ExitCode.DONE


def test_one_directory_has_one_collector(flows_dir: Path) -> None:
    """A second one is refused, and the first one goes on."""
    with Running(flows_dir) as running:
        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "nettop",
                "collect",
                "--data-dir",
                str(flows_dir),
                "--listen",
                "127.0.0.1:0",
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert second.returncode != ExitCode.DONE
        assert "another process listens on" in second.stderr
        running.send(NETFLOW_5)
        running.stored(2)


def test_a_collector_that_does_not_run(flows_dir: Path) -> None:
    """A stopped collector has no socket, which the error says."""
    with pytest.raises(SourceFailed, match="does not answer"):
        RemoteCollector(f"unix:{flows_dir / 'flows.sock'}").document(STATE_PATH)
