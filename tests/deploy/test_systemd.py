# SPDX-License-Identifier: Apache-2.0
"""The units of deploy/systemd: checked by systemd itself, and run with exactly their settings."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from nettop import cli
from nettop.errors import ExitCode
from nettop.kernel.host import privileges
from nettop.recording.reader import RecordedFile
from nettop.settings import SYSTEM_FLOWS_DIR
from nettop.snapshots import lenses
from tests.builders.exports import NETFLOW_5
from tests.collecting import until

from .booted import SYSTEMD, UNITS, Booted, status_of

LEAST_SECURE = 4.0
COMMAND = "/usr/local/bin/nettop"
NAMES = {number: name for name, number in vars(privileges).items() if name.startswith("CAP_")}
OF_LENSES = privileges.STARTING - {
    privileges.CAP_SETPCAP,  # no-new-privileges: the bounding set need not be cleared
    privileges.CAP_SYS_RESOURCE,  # replaced by LimitMEMLOCK=
}
CAPABILITIES = {
    "nettop-serve": OF_LENSES,
    "nettop-log": OF_LENSES,
    "nettop-record": OF_LENSES,
    "nettop-collect": {privileges.CAP_NET_ADMIN},  # receive buffers
}

needs_analyze = pytest.mark.skipif(
    not Path("/usr/bin/systemd-analyze").exists(), reason="systemd is not installed"
)
every_unit = pytest.mark.parametrize("unit", sorted(CAPABILITIES))


def settings(unit: str) -> dict[str, list[str]]:
    """Return the values of each setting of a unit, in order."""
    values: dict[str, list[str]] = defaultdict(list)
    for line in UNITS[unit].read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            values[name].append(value)
    return dict(values)


def analyzed(*words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def test_there_is_one_for_each_service() -> None:
    """Each service has a unit, and there are no others."""
    assert sorted(UNITS) == sorted(CAPABILITIES)


@needs_analyze
@every_unit
def test_systemd_finds_nothing_wrong(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` accepts each unit if the command exists."""
    text = UNITS[unit].read_text()
    assert text.count(COMMAND) == 1, "a package with another path changes one line"
    path = tmp_path / f"{unit}.service"
    path.write_text(text.replace(COMMAND, "/bin/true"))
    done = analyzed("verify", "--man=no", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    path.write_text(path.read_text().replace("[Service]", "[Service]\nNoSuchSetting=1"))
    assert "NoSuchSetting" in analyzed("verify", "--man=no", str(path)).stderr


@needs_analyze
@every_unit
def test_it_is_secure_by_systemds_own_measure(unit: str) -> None:
    """The exposure level, 0 to 10 with 10 for no hardening, is at most LEAST_SECURE."""
    words = ("security", "--offline=true", f"--threshold={round(LEAST_SECURE * 10)}", str(UNITS[unit]))
    done = analyzed(*words)
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert overall is not None
    assert float(overall[1]) <= LEAST_SECURE
    assert done.returncode == 0


@every_unit
def test_capabilities_are_those_that_starting_takes(unit: str) -> None:
    """Units have exactly the capabilities in nettop/kernel/host/privileges.py."""
    wanted = {NAMES[number] for number in CAPABILITIES[unit]}
    for name in ("CapabilityBoundingSet", "AmbientCapabilities"):
        (value,) = settings(unit)[name]
        assert set(value.split()) == wanted


@every_unit
def test_permanent_failures_prevent_a_restart(unit: str) -> None:
    """A unit is not restarted after exit codes that a retry cannot change."""
    (codes,) = settings(unit)["RestartPreventExitStatus"]
    final = (ExitCode.USAGE, ExitCode.UNSUPPORTED, ExitCode.PERMISSION)
    assert list(map(int, codes.split())) == list(final)
    assert settings(unit)["Restart"] == ["on-failure"]


@every_unit
def test_the_watchdog_ends_what_reads_nothing(unit: str) -> None:
    """Units that read lenses have a watchdog, which asks them to end in order; a collector's threads end it."""
    watchdog = [name for name in settings(unit) if name.startswith("Watchdog")]
    assert watchdog == ([] if unit == "nettop-collect" else ["WatchdogSec", "WatchdogSignal"])


@every_unit
def test_the_command_line_is_understood(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option exists, and no listen address is set, so that the loopback defaults apply."""
    (line,) = settings(unit)["ExecStart"]
    command, name, *options, last = line.split()
    assert (command, f"nettop-{name}", last) == (COMMAND, unit, "$OPTIONS")
    assert not any("listen" in option for option in options)
    assert cli.run([name, *options, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in options if option.startswith("--"))


def test_places_are_those_of_the_program() -> None:
    """The collector's directory is where `nettop flows` of root looks."""
    (line,) = settings("nettop-collect")["ExecStart"]
    assert "--data-dir %S/nettop/flows" in line
    assert f"/var/lib/{settings('nettop-collect')['StateDirectory'][0]}" == SYSTEM_FLOWS_DIR


# --- run by systemd -------------------------------------------------------------------------------------------

PLAIN = f"""\
[Service]
Type=notify
ExecStart={COMMAND} serve --listen 127.0.0.1:9480
TimeoutStartSec=10min
StandardError=append:/var/log/plain.err
"""
"""Unit that runs nettop serve as root without restrictions."""
COLLECTOR = ["nettop-collect"] if importlib.util.find_spec("chdb") else []
SEND = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sender:
    sender.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 2055))
"""
INTERFACES = """
ip link add near type veth peer name far
ip address add 192.0.2.1/24 dev near
ip link set near up
ip link set far up
"""
FLOW_QUERY = "SELECT sum(bytes), count() FROM flows_raw WHERE bytes % 7 + length(toString(src)) > 0"


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """Boot a systemd with the units installed."""
    folder = tmp_path_factory.mktemp("booted")
    for path in (folder, folder.parent):
        path.chmod(0o755)
    with Booted(folder) as booted:
        yield booted


@pytest.fixture
def machine(booted: Booted) -> Iterator[Booted]:
    """Yield the booted systemd; stop all units afterwards."""
    yield booted
    booted.run("systemctl", "stop", "plain", *UNITS, check=False)
    booted.run("systemctl", "reset-failed")


run_by_systemd = pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is not installed")


def assert_confined(unit: str, pid: int) -> None:
    """Assert that a process is confined: bounding set of its unit, no usable capability, and restricted mounts."""
    status = status_of(pid)
    assert int(status["CapBnd"], 16) == sum(1 << number for number in CAPABILITIES[unit])
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(status[name], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    options = {fields[4]: fields[5].split(",") for fields in map(str.split, mounts)}
    assert "ro" in options["/"]
    assert "ro" in options["/sys"]
    assert {"/home", "/root", "/tmp", "/dev"} <= set(options)


def got(booted: Booted, url: str, *options: str) -> str:
    """Return the answer."""
    return booted.run("curl", "--silent", "--show-error", *options, url).stdout


def mechanisms(booted: Booted, port: int) -> dict[str, str] | None:
    """Return a server's mechanism of each declared hook; None until it is healthy and has all."""
    document = json.loads(got(booted, f"http://127.0.0.1:{port}/health"))
    via = {name: lens["hooks"] for name, lens in document["lenses"].items()}
    declared = [(lens.id, hook.name) for lens in lenses() for hook in lens.hooks]
    if document["status"] != "ok" or any(name not in via[lens] for lens, name in declared):
        return None
    return {f"{lens}: {name}": via[lens][name] for lens, name in declared}


def traffic(booted: Booted) -> bool:
    """Make a failing connection, and send packets through an interface and to the collector."""
    booted.run("curl", "http://127.0.0.1:1/", check=False)
    for address in ("192.0.2.2", "127.0.0.1"):
        booted.run("python3", "-c", SEND, "00", address)
    return True


def lenses_with_values(metrics: str) -> set[str]:
    """Return the lenses with a non-zero metric."""
    samples = (sample for family in parse_metrics(metrics) for sample in family.samples if sample.value)
    return {sample.name.split("_")[1] for sample in samples}


@run_by_systemd
@pytest.mark.kernel
def test_serve(machine: Booted) -> None:
    """Every lens has the same mechanisms as without restrictions, and has metrics."""
    unit = "nettop-serve"
    (machine.root / "etc/systemd/system/plain.service").write_text(PLAIN)
    machine.configure(unit)
    machine.run("sh", "-ec", INTERFACES)
    machine.run("systemctl", "start", "plain", unit, *COLLECTOR)
    pid = machine.pid(unit)
    assert_confined(unit, pid)
    assert machine.show(unit, "StatusText") == "serving at http://127.0.0.1:9471/"
    for port in (9471, 9480):
        until(lambda port=port: mechanisms(machine, port), "every program is loaded")
    assert mechanisms(machine, 9471) == mechanisms(machine, 9480)
    wanted = {lens.id for lens in lenses() if any(table.metrics for table in lens.tables)} - {"collector"}
    if COLLECTOR:
        wanted.add("flows")  # the names of its metrics
    until(
        lambda: (
            traffic(machine) and wanted <= lenses_with_values(got(machine, "http://127.0.0.1:9471/metrics"))
        ),
        "metrics of every lens",
    )
    machine.run("systemctl", "reload", unit)
    assert machine.pid(unit) == pid
    machine.run("systemctl", "stop", unit)
    assert machine.show(unit, "Result") == "success"
    # The URL, and the result of the reload.
    assert machine.errors(unit).count("\n") == 2, machine.errors(unit)


@run_by_systemd
@pytest.mark.kernel
def test_serve_with_a_token(machine: Booted) -> None:
    """The unit gets root's token file as a credential; /health needs no token."""
    unit = "nettop-serve"
    token = machine.root / "etc/nettop/token"
    token.parent.mkdir(exist_ok=True)
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    options = f"--lenses drops --listen 0.0.0.0:9471 --token-file /run/credentials/{unit}.service/token"
    machine.configure(unit, options, "LoadCredential=token:/etc/nettop/token\n")
    machine.start(unit)
    assert got(machine, "http://127.0.0.1:9471/health") == "ok\n"
    assert '"status":401' in got(machine, "http://127.0.0.1:9471/metrics")
    with_token = ("--header", "Authorization: Bearer 0123456789abcdef")
    assert 'nettop_lens_up{lens="drops"} 1' in got(machine, "http://127.0.0.1:9471/metrics", *with_token)


@run_by_systemd
@pytest.mark.kernel
def test_log(machine: Booted) -> None:
    """It writes lines, and continues in new files after a reload."""
    unit, folder = "nettop-log", machine.root / "var/log/private/nettop"
    machine.configure(unit)
    pid = machine.start(unit)
    assert_confined(unit, pid)
    assert (folder / "metrics.jsonl").exists()
    machine.run("curl", "http://127.0.0.1:1/", check=False)

    def failures() -> list[dict[str, Any]]:
        rows = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        return [row for row in rows if row.get("event") == "fail" and row["remote_port"] == 1]

    until(failures, "the event is logged")
    (folder / "events.jsonl").rename(folder / "events.old")
    machine.run("systemctl", "reload", unit)
    assert (folder / "events.jsonl").exists()
    assert (machine.pid(unit), machine.show(unit, "StatusText")) == (pid, "logging events, metrics")
    machine.run("systemctl", "stop", unit)
    assert machine.show(unit, "Result") == "success"
    assert (machine.root / "var/log/nettop").is_symlink()


@run_by_systemd
@pytest.mark.kernel
def test_record(machine: Booted) -> None:
    """It records every lens but collector, with the same findings and tables as without restrictions."""
    unit, folder = "nettop-record", machine.root / "var/lib/private/nettop/recordings"
    machine.configure(unit)
    assert_confined(unit, machine.start(unit))
    assert machine.show(unit, "StatusText").startswith("recording connections, cpu, bandwidth, latency")
    machine.run("systemctl", "stop", unit)
    assert machine.show(unit, "Result") == "success"
    assert "lost nothing" in machine.errors(unit)
    (path,) = folder.glob("nettop-*.nettop")
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o640, 0o750)
    with path.open("rb") as file:
        recorded = RecordedFile(file.fileno())
        (group,) = recorded.groups
    assert group.group.failures == {}
    assert set(group.group.lenses) == {lens.id for lens in lenses()} - {"collector"}


@run_by_systemd
@pytest.mark.kernel
def test_collect(machine: Booted) -> None:
    """It stores flows and answers queries, including compiled expressions; flows survive a restart."""
    pytest.importorskip("chdb")
    unit = "nettop-collect"
    machine.configure(unit)
    assert_confined(unit, machine.start(unit))
    state = json.loads(got(machine, "http://127.0.0.1:9472/api/v1/collector"))
    assert "receive buffer" not in machine.errors(unit)
    assert state["failure"] is None
    machine.run("python3", "-c", SEND, NETFLOW_5.hex(), "127.0.0.1")

    def answer(sql: str) -> str:
        return got(machine, "http://127.0.0.1:9472/", "--data-binary", sql)

    until(lambda: answer("SELECT count() FROM flows_raw").strip() == "2", "the flows are stored")
    # The engine compiles the expression from the fourth time on.
    assert len({answer(FLOW_QUERY) for _ in range(6)}) == 1
    assert answer(FLOW_QUERY).startswith("784\t")
    top = machine.run(COMMAND, "flows", "--top", "protocol", "--format", "jsonl").stdout
    assert sorted(json.loads(line)["bytes"] for line in top.splitlines()) == [84, 700]
    machine.run("systemctl", "restart", unit)
    assert answer("SELECT count() FROM flows_raw").strip() == "2"
    assert got(machine, "http://127.0.0.1:9472/health").startswith("{")
    machine.run("systemctl", "stop", unit)
    assert machine.show(unit, "Result") == "success"


@run_by_systemd
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("unit", "options", "code"),
    [
        ("nettop-log", "--no-such-option", ExitCode.USAGE),
        ("nettop-serve", "--listen 127.0.0.1:1", ExitCode.PERMISSION),
    ],
)
def test_permanent_failures_are_not_retried(machine: Booted, unit: str, options: str, code: ExitCode) -> None:
    """A bad option, and a port that needs another capability, fail without a restart."""
    machine.configure(unit, options)
    assert machine.run("systemctl", "start", unit, check=False).returncode != 0
    assert machine.show(unit, "ExecMainStatus") == str(int(code))
    assert (machine.show(unit, "ActiveState"), machine.show(unit, "NRestarts")) == ("failed", "0")


@run_by_systemd
@pytest.mark.kernel
def test_a_killed_unit_is_restarted(machine: Booted) -> None:
    """systemd restarts a killed unit, after a delay that the test shortens."""
    unit = "nettop-log"
    machine.configure(unit, drop_in="RestartSec=0\n")
    first = machine.start(unit)
    machine.run("systemctl", "kill", "--signal=KILL", unit)
    until(lambda: machine.show(unit, "NRestarts") == "1", "it is restarted")
    until(lambda: machine.show(unit, "ActiveState") == "active", "it works again")
    assert machine.pid(unit) != first


ADDED = "CapabilityBoundingSet={0}\nAmbientCapabilities={0}\n"


@run_by_systemd
@pytest.mark.kernel
@pytest.mark.deploy
@pytest.mark.parametrize(
    ("unit", "options", "drop_in"),
    [
        ("nettop-serve", "--lenses drops --listen 127.0.0.1:80", ADDED.format("CAP_NET_BIND_SERVICE")),
        ("nettop-serve", "", "".join(f"{line}=\n{line}=CAP_BPF CAP_PERFMON CAP_NET_ADMIN\n" for line in
                                     ("CapabilityBoundingSet", "AmbientCapabilities"))),
        ("nettop-serve", "--lenses connections --follow-namespaces", ""),
        ("nettop-log", "", "DynamicUser=no\nUser=65534\nGroup=adm\n"),
        ("nettop-collect", "--interface lo",
         ADDED.format("CAP_NET_RAW") + "RestrictAddressFamilies=AF_PACKET\n"),
        ("nettop-collect", "--receive-buffer 64K", "CapabilityBoundingSet=\nAmbientCapabilities=\n"),
    ],
)  # fmt: skip
def test_drop_ins(machine: Booted, unit: str, options: str, drop_in: str) -> None:
    """The drop-ins of docs/deploy/services.md and docs/privileges.md work without a warning."""
    machine.configure(unit, options, drop_in)
    machine.start(unit)
    (machine.root / f"var/log/{unit}.err").write_text("")
    machine.run("systemctl", "restart", unit)
    assert not re.search("buffer|cannot", machine.errors(unit)), machine.errors(unit)
    assert machine.show(unit, "ActiveState") == "active"
