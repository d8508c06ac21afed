# SPDX-License-Identifier: Apache-2.0
"""The doctor without a kernel: facts of fake hosts, report texts, exit codes, redaction, and detection
of false data.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop import cli
from nettop.cli import run
from nettop.commands import doctor as command
from nettop.doctor import capabilities, facts, text
from nettop.doctor.bundle import ReportRedactor
from nettop.doctor.command import DoctorSettings, make_report, run_doctor
from nettop.doctor.report import Check, LensReport, Report, Verdict
from nettop.errors import ExitCode, NettopError, PermissionMissing, SourceFailed, Unsupported, UsageError
from nettop.kernel.bpf.mechanisms import DISABLED, NOT_CHOSEN
from nettop.kernel.bpf.program_text import PART_OF_NETTOP
from nettop.kernel.host.facts import Host
from nettop.kernel.host.privileges import CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, KNOWN, name_of
from nettop.probes.connections import self_test
from nettop.process.interrupts import exit_on_signals
from nettop.selftest import paths
from nettop.selftest.process import CommandFailed, run_together
from nettop.selftest.result import REPORT_IT, SelfTestResult
from nettop.snapshots import lenses
from nettop.snapshots.connections import LENS
from nettop.snapshots.cpu import LENS as CPU
from nettop.snapshots.drops import LENS as DROPS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Lens
from tests.unit.scripted import Scripted, steps

pytestmark = pytest.mark.usefixtures("made_capabilities")

ALL = (1 << len(KNOWN)) - 1
REPORT = Report(
    checks=(Check("kernel", "kernel", "6.1"), Check("bcc", "bcc", "none", Verdict.BAD, "install it")),
    lenses=(
        LensReport(
            LENS,
            (
                HookStatus("sockets", "iter/task_file"),
                HookStatus(
                    "routes", None, (("fexit/tcp_v4_connect", "no ftrace"), ("kprobe/x", "none")), ("a", "b")
                ),
            ),
            {f"namespace {n}": "not entered" for n in (1, 2, 3)},
        ),
    ),
    results=(
        SelfTestResult("connections", "TCP", 1_000_003, 1_000_003, "bytes"),
        SelfTestResult("connections", "UDP", 17, 16, "packets"),
        SelfTestResult("connections", "veth", skipped="no namespace"),
    ),
)


def put(root: Path, path: str, content: str) -> Path:
    """Write a file of a made host."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def lines(report: Report, **how: bool) -> list[str]:
    """Return the report as text."""
    return list(text.report_lines(report, **how))


# --- the report -----------------------------------------------------------------------------------------------


def test_json_is_as_agreed() -> None:
    """Give every key that other programs read, and null where nothing was tried or measured."""
    report = json.loads(json.dumps(REPORT.as_json()))
    assert set(report) == {"version", "host", "checks", "lenses", "self_test", "ok"}
    assert report["host"] == {"kernel": "6.1", "bcc": "none"}
    assert report["checks"][1] == {"name": "bcc", "value": "none", "verdict": "bad", "remedy": "install it"}
    (lens,) = report["lenses"]
    of_lens = {"id": "connections", "title": "Connections", "works": True, "error": None}
    assert lens == lens | of_lens
    refused = {"fexit/tcp_v4_connect": "no ftrace", "kprobe/x": "none"}
    why = [{"mechanism": name, "why": text} for name, text in refused.items()]
    assert lens["hooks"][1] == {"hook": "routes", "mechanism": None, "refused": why, "fields": ["a", "b"]}
    assert [result["ok"] for result in report["self_test"]] == [True, False, None]
    names = ["lens", "what", "expected", "measured", "unit", "ok", "remedy", "detail"]
    assert list(report["self_test"][0]) == names
    assert report["ok"] is False


@pytest.mark.parametrize(
    ("errors", "results", "code"),
    [
        ([None], [], ExitCode.DONE),
        ([None], [SelfTestResult("x", "y", 1, 1)], ExitCode.DONE),
        ([None], [SelfTestResult("x", "y", skipped="no")], ExitCode.DONE),
        ([None], [SelfTestResult("x", "y", 1, None)], ExitCode.FAILURE),
        ([PermissionMissing("a"), None], [SelfTestResult("x", "y", 1, 2)], ExitCode.PERMISSION),
        ([PermissionMissing("a"), Unsupported("b")], [], ExitCode.UNSUPPORTED),
        ([SourceFailed("b")], [], ExitCode.UNSUPPORTED),
    ],
)
def test_exit_codes(errors: list[NettopError | None], results: list[SelfTestResult], code: ExitCode) -> None:
    """Let a lens that cannot work decide before a self-test that disagrees."""
    report = Report(lenses=tuple(LensReport(LENS, error=error) for error in errors), results=tuple(results))
    assert report.exit_code is code
    assert report.as_json()["ok"] is (code is ExitCode.DONE)


def test_faults_have_a_remedy() -> None:
    """Show a remedy below each line that fails, and thousands apart."""
    shown = lines(REPORT)
    for at, line in enumerate(shown):
        if "✗" in line or "n/a  routes" in line:
            below = [text.strip() for text in shown[at + 1 : at + 4]]
            assert any(text.startswith("→ ") for text in below), line
    whole = "\n".join(shown)
    assert "1,000,003 of 1,000,003 bytes" in whole
    assert "refused fexit/tcp_v4_connect: no ftrace" in whole
    assert "→ fix these under HOST: bcc" in whole
    assert "namespace 1 and 2 more" in whole
    assert "skipped: no namespace" in whole
    assert shown[-1] == "The self-test disagrees in 1 line: what nettop shows on this host may be wrong."


BAD = Check("bcc", "bcc", "none", Verdict.BAD)
FIX_BCC = "→ fix these under HOST: bcc"
NEEDS_BTF = "→ use a kernel with CONFIG_DEBUG_INFO_BTF"
NEEDS_KPROBES = "→ use a kernel with CONFIG_KPROBE_EVENTS"
WITHOUT_TYPES = (("tp_btf/x", "no types"),)
ROUTES = HookStatus("routes", None, (("fexit/x", "there are no events"),))
EVENTS_OFF = (
    HookStatus("events", None, (("tp_btf/x", NOT_CHOSEN),)),
    ROUTES,
    HookStatus("sockets", "sock_diag", (("iter/task_file", NOT_CHOSEN),)),
    HookStatus("opened", None, (("iter/task_file", "not reported"),)),
)
DENIED = (("perf cpu-clock", "a filter denies them"),)
SAMPLES = HookStatus("samples", None, DENIED, remedy="allow them")
PLACES = HookStatus("places", None, (("/proc/kallsyms", "hidden"),), (), "give it CAP_SYSLOG")


@pytest.mark.parametrize(
    ("lens", "hooks", "checks", "expected"),
    [
        # Options of the kernel are named once.
        (LENS, [HookStatus("routes", None, (("fexit/a", "no"), ("fexit/b", "no"), ("kprobe/a", "no")))], (),
         ["→ use a kernel with CONFIG_FUNCTION_TRACER or CONFIG_KPROBE_EVENTS"]),
        # What the user left out needs no remedy, nor does what requires it.
        (LENS, EVENTS_OFF, (), []),
        (LENS, EVENTS_OFF, (BAD,), []),
        (LENS, [HookStatus("events", None, (("tp_btf/x", DISABLED),)), ROUTES], (BAD,), []),
        (LENS, [HookStatus("routes", None, (("fexit/x", DISABLED), ("kprobe/x", "none")))], (), [NEEDS_KPROBES]),
        (LENS, [HookStatus("routes", None, (("fexit/x", DISABLED), ("kprobe/x", "none")))], (BAD,), [FIX_BCC]),
        # What refuses a hook refuses those that require it.
        (LENS, [HookStatus("events", None, WITHOUT_TYPES), ROUTES], (), [NEEDS_BTF] * 2),
        # A refusal by a kernel that has all that a mechanism needs is a bug.
        (LENS, [HookStatus("events", None, WITHOUT_TYPES)], (Check("btf", "BTF", "all well"),), [f"→ {REPORT_IT}"]),
        (DROPS, [HookStatus("packets", "tp_btf/kfree_skb"), PLACES], (), ["→ give it CAP_SYSLOG"]),
        (DROPS, [HookStatus("reasons", None, (("tp_btf/kfree_skb", "old"),))], (),
         ["→ Linux 5.17 and later report reasons"]),
        (DROPS, [HookStatus("packets", None, WITHOUT_TYPES), PLACES], (), [NEEDS_BTF] * 2),
        # The remedy of a refusal is that of all hooks refused for the same reason.
        (LENS, [HookStatus("received", None, (("XDP", "no memory"),), remedy="raise it"),
                HookStatus("sent", None, (("tp_btf/x", "no memory"),))], (), ["→ raise it"] * 2),
        # The remedy of samples is of no use to others.
        (CPU, [SAMPLES, HookStatus("served", None, (("tp_btf/tcp_probe", "there are no samples"),)),
               HookStatus("routes", None, (("kprobe/x", "no kprobes"),))],
         (Check("perf_events", "perf events", "a filter denies them", Verdict.BAD, "allow them"),),
         ["→ allow them", *["→ fix these under HOST: perf events"] * 2, NEEDS_KPROBES]),
    ],
)  # fmt: skip
def test_remedies_of_hooks(
    lens: Lens, hooks: Sequence[HookStatus], checks: tuple[Check, ...], expected: list[str]
) -> None:
    """A hook without a mechanism has the remedy nearest to its cause: the host's, its own, or a kernel option."""
    shown = lines(Report(checks=checks, lenses=(LensReport(lens, tuple(hooks)),)))
    assert [line.strip() for line in shown if line.strip().startswith("→")] == expected


def test_equal_reasons_are_shown_once() -> None:
    """Mechanisms that begin alike are counted; a single one keeps its name."""
    mechanisms = ("fexit/a + x", "fexit/a + y", "kretprobe/a + x", "kretprobe/a + y")
    refused = tuple((name, "no" if "fexit" in name else "none") for name in mechanisms)
    hook = HookStatus("accepts", "x", (*refused, ("z", "none")))
    shown = [line.strip() for line in lines(Report(lenses=(LensReport(LENS, (hook,)),)))]
    assert [line for line in shown if line.startswith("refused ")] == [
        "refused fexit/a + … (2 mechanisms): no",
        "refused kretprobe/a + … (2 mechanisms), z: none",
    ]


def test_a_lens_without_a_remedy_of_its_own() -> None:
    """The host's is shown, unless the user left out what the lens needs."""

    def shown(what: str) -> str:
        return "\n".join(lines(Report((BAD,), (LensReport(LENS, error=Unsupported(what)),))))

    assert "→ fix these under HOST: bcc" in shown("nothing lists the sockets: no types")
    assert "→ fix" not in shown(f"nothing lists the sockets: {DISABLED}")


def test_signs_without_colour_and_without_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets no colours; a locale without the signs gets ASCII ones, and the words stay."""
    monkeypatch.setattr(text.locale, "getencoding", lambda: "ANSI_X3.4-1968")
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    text.write_report(REPORT, stream)
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "x bad" in shown
    assert "+ ok" in shown
    assert "> install it" in shown
    assert "\x1b" not in shown
    assert "?" not in shown


def test_colour_only_strengthens() -> None:
    """Without its colours a coloured report is the plain one."""
    coloured = "\n".join(lines(REPORT, coloured=True))
    assert "\x1b[31m✗ bad " in coloured
    plain = coloured
    for code in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"):
        plain = plain.replace(code, "")
    assert plain == "\n".join(lines(REPORT))


@given(st.integers(40, 200))
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    """Long values are folded, as far as words allow."""
    why = "word " * 60
    report = Report(checks=(Check("a", "a name", why, Verdict.BAD, why),))
    for line in text.report_lines(report, width=max(width, 50)):
        assert len(line) <= max(width, 50)


# --- lenses ---------------------------------------------------------------------------------------------------


def test_a_lens_that_fails_does_not_stop_the_others() -> None:
    """Report the error of one lens with its remedy, examine the others, and close every source."""
    sources: dict[str, Scripted] = {}

    def source_of(lens: str) -> Scripted:
        script = steps([]) if lens != "drops" else [Unsupported("no such thing", "another kernel")]
        sources[lens] = Scripted(script)
        return sources[lens]

    report = make_report(DoctorSettings(traffic=False), source_of)
    by_id = {lens.lens.id: lens for lens in report.lenses}
    assert set(by_id) == {lens.id for lens in lenses()}
    failed = by_id["drops"].error
    assert failed is not None
    assert (failed.what, failed.remedy) == ("no such thing", "another kernel")
    assert by_id["connections"].error is None
    assert report.exit_code is ExitCode.UNSUPPORTED
    assert all(source.closed for source in sources.values())
    assert sources["connections"].options is not None
    assert sources["connections"].options.tables == {table.name for table in LENS.tables}


def of_drops(step: Exception, **chosen: Any) -> Report:
    """Return the report on the drops, whose source raises this error."""

    class Failing(Scripted):
        def read(self, taken_ns: int) -> Any:
            raise step

    return make_report(DoctorSettings(parts=("drops",), traffic=False, **chosen), lambda _: Failing([]))


def test_errors_of_a_lens() -> None:
    """Report a lens's error, without the remedy to run doctor, and a bug as such; an unknown mechanism ends doctor."""
    report = of_drops(Unsupported("nothing lists them", "nettop doctor shows the cause"))
    assert report.as_json()["lenses"][0]["error"] == {"what": "nothing lists them", "remedy": ""}
    bug = of_drops(ZeroDivisionError("by nought")).lenses[0].error
    assert bug is not None
    assert "by nought" in bug.what and "report" in bug.remedy
    with pytest.raises(UsageError):
        of_drops(UsageError("unknown mechanism", "choose from: a"), mechanisms={"packets": "x"})


def test_an_import_is_not_interrupted() -> None:
    """Finish the import of a probe before an interrupt ends doctor."""
    made = []

    def source_of(lens: str) -> Scripted:
        signal.raise_signal(signal.SIGTERM)
        made.append(lens)
        return Scripted(steps([]))

    with pytest.raises(KeyboardInterrupt) as ended, exit_on_signals():
        make_report(DoctorSettings(parts=("drops",), traffic=False), source_of)
    assert (made, ended.value.args) == (["drops"], (signal.SIGTERM,))


def test_no_fork_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start and end all traffic processes before an interrupt: Python would lose it around a fork."""
    made: list[object] = []
    alive: list[object] = []

    class Forked:
        def __init__(self, _: str) -> None:
            signal.raise_signal(signal.SIGINT)
            made.append(self)
            alive.append(self)

        def close(self) -> None:
            """End it."""
            alive.remove(self)

    monkeypatch.setattr(paths, "TrafficProcess", Forked)
    monkeypatch.setattr(paths.devices, "is_running", lambda _: pytest.fail("it went on"))
    with pytest.raises(KeyboardInterrupt), exit_on_signals(), paths.traffic_paths():
        pass
    assert (len(made), alive) == (4, [])


def test_only_these_parts() -> None:
    """Examine only the chosen parts."""
    settings = DoctorSettings(parts=("host",), traffic=False, stays_root="uid 4711 may not read it")
    report = make_report(settings, lambda _: Scripted(steps([])))
    assert report.as_json()["host"]["stays_root"] == "uid 4711 may not read it"
    assert not report.lenses
    report = make_report(DoctorSettings(parts=("drops",), traffic=False), lambda _: Scripted(steps([])))
    assert not report.checks
    assert [lens.lens.id for lens in report.lenses] == ["drops"]


# --- the self-test's own honesty ------------------------------------------------------------------------------


def exchange(**facts_of_ends: Mapping[str, int]) -> self_test._Exchange:
    """Return a connection over which 7 bytes went there and 5 back, between sockets 1 and 2; socket 3 is UDP."""
    client: Mapping[str, int] = {"id": 1, "pid": 10, "retransmits": 0}
    server: Mapping[str, int] = {"id": 2, "pid": 20, "retransmits": 1}
    udp: Mapping[str, int] = {"id": 3, "pid": 20, "receive_queue": 99}
    path = paths.TrafficPath("loopback", None, None, {}, {})  # type: ignore[arg-type]
    return self_test._Exchange(path, "IPv4", 7, 5, client, server, udp)


TRUTH = {
    1: {"pid": 10, "process": "doctor-client", "bytes_sent": 7, "bytes_received": 5, "retransmits": 0},
    2: {"pid": 20, "process": "doctor-server", "bytes_sent": 5, "bytes_received": 7, "retransmits": 1},
    3: {"pid": 20, "process": "doctor-server", "receive_queue": 99},
}


def judged(rows: Mapping[int, Mapping[str, object]]) -> list[bool | None]:
    """Return the self-test's result for these rows."""
    copies = {key: dict(row) for key, row in rows.items()}
    return [
        result.ok
        for result in self_test._compare_bytes([exchange()], copies)
        + self_test._compare_owners([exchange()], copies)
    ]


def test_self_test_accepts_right_rows() -> None:
    """Accept right rows, and report a socket without a row."""
    assert judged(TRUTH) == [True] * 5
    for key in TRUTH:
        assert False in judged({number: row for number, row in TRUTH.items() if number != key})


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [(key, field, value) for key, row in TRUTH.items() for field in row for value in (None, 8, "somebody")],
)
def test_self_test_notices_a_wrong_value(key: int, field: str, value: object) -> None:
    """Fail exactly one comparison for one wrong or unknown number, or another owner."""
    rows = {number: dict(row) for number, row in TRUTH.items()} | {key: {**TRUTH[key], field: value}}
    assert judged(rows).count(False) == 1


class RecordingProcess:
    """A traffic process that records its commands, and fails on one of them."""

    def __init__(self, log: list[str], failing: str = "") -> None:
        self._log, self._failing, self._command = log, failing, ""

    def begin(self, command: str, *_: object) -> None:
        """Record it."""
        self._command = command
        self._log.append(command)

    def result(self) -> None:
        """Fail at the command that should."""
        self._log.append(f"result of {self._command}")
        if self._command == self._failing:
            raise CommandFailed("as planned")


def test_both_results_are_taken_even_if_one_command_fails() -> None:
    """No result is left over for the next command."""
    log: list[str] = []
    processes = RecordingProcess(log, "send"), RecordingProcess(log)
    with pytest.raises(CommandFailed):
        run_together((processes[0], "send", "a", 1), (processes[1], "receive", "a", 1))  # type: ignore[arg-type]
    assert log == ["send", "receive", "result of send", "result of receive"]


# --- facts ----------------------------------------------------------------------------------------------------


def missing_of(root: Path, lacking: Sequence[int] | None, permitted: int = ALL) -> Check:
    """Return the check of what is missing, with all but these capabilities effective; None are none."""
    effective = 0 if lacking is None else ALL - sum(1 << number for number in lacking)
    put(root, "proc/thread-self/status", f"CapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}\n")
    return next(
        check for check in capabilities.check_capabilities(root) if check.key == "capabilities_missing"
    )


@pytest.mark.parametrize(
    ("lacking", "verdict"),
    [
        ((), Verdict.OK),
        ((CAP_BPF, CAP_PERFMON), Verdict.OK),  # CAP_SYS_ADMIN includes what was split from it
        ((CAP_SYS_ADMIN,), Verdict.NOTE),
        ((CAP_BPF, CAP_SYS_ADMIN), Verdict.BAD),
        ((CAP_PERFMON, CAP_SYS_ADMIN), Verdict.BAD),
    ],
)
def test_exactly_the_missing_capabilities_are_named(
    tmp_path: Path, lacking: tuple[int, ...], verdict: Verdict
) -> None:
    """Name what is missing, in the line and in its remedy, and nothing else; programs load with either capability."""
    check = missing_of(tmp_path, lacking)
    assert check.verdict is verdict
    names = set() if verdict is Verdict.OK else set(map(name_of, lacking))
    assert set(check.data) == names  # type: ignore[call-overload]
    for known in map(name_of, capabilities.USED if verdict is Verdict.BAD else ()):
        assert (known in check.value) == (known in check.remedy) == (known in names)


@pytest.mark.skipif(os.geteuid() != 0, reason="the remedy is another one for other users")
def test_permitted_and_not_effective(tmp_path: Path) -> None:
    """Distinguish what only has to be raised from what was taken away."""
    assert "permitted but not effective" in missing_of(tmp_path, None).remedy
    assert "--cap-add BPF" in missing_of(tmp_path, None, permitted=0).remedy


def test_another_user_namespace(tmp_path: Path) -> None:
    """Doctor says so, and so does whatever loads programs; where it is unknown nothing is said."""
    assert capabilities.check_user_namespace(tmp_path).verdict is Verdict.OK
    put(tmp_path, "proc/self/ns/user", "")  # has another inode number than the initial one
    put(tmp_path, "sys/kernel/btf/vmlinux", "BTF")
    assert capabilities.check_user_namespace(tmp_path).verdict is Verdict.BAD
    with pytest.raises(PermissionMissing) as refusal:
        Host(tmp_path).require_bpf()
    assert "user namespace" in refusal.value.what


SYSFS = "30 20 0:7 / /sys rw - sysfs sysfs rw\n"
SECURITYFS = "30 20 0:7 / /sys/kernel/security rw - securityfs securityfs rw\n"


@pytest.mark.parametrize(
    ("content", "mode", "verdict", "remedy"),
    [
        ("[none] integrity confidentiality", "none", Verdict.OK, ""),
        ("none [integrity] confidentiality", "integrity", Verdict.OK, ""),
        ("none integrity [confidentiality]", "confidentiality", Verdict.BAD, " "),
        (SECURITYFS, "none", Verdict.OK, ""),
        (SYSFS, "unknown", Verdict.NOTE, "mount -t securityfs"),
    ],
)
def test_lockdown(tmp_path: Path, content: str, mode: str, verdict: Verdict, remedy: str) -> None:
    """The mode is named, and what to do where it forbids reading or is unknown."""
    is_mount = content in (SECURITYFS, SYSFS)
    put(tmp_path, "proc/self/mountinfo" if is_mount else "sys/kernel/security/lockdown", content)
    check = facts.check_lockdown(tmp_path)
    assert (check.data, check.verdict, bool(check.remedy)) == (mode, verdict, bool(remedy))
    assert mode in check.value
    assert remedy in check.remedy


def processes_of(root: Path, options: str, effective: int = ALL) -> Check:
    """Return the check of which processes are seen, where /proc was mounted so, and over another one."""
    below = "22 27 0:21 / /proc rw,relatime - proc proc rw,hidepid=2\n"
    put(root, "proc/self/mountinfo", f"{below}68 67 0:40 / /proc rw - proc proc {options}\n")
    put(root, "proc/thread-self/status", f"CapPrm:\t{effective:016x}\nCapEff:\t{effective:016x}\n")
    return facts.check_processes(root)


@pytest.mark.parametrize(
    ("options", "effective", "verdict", "said"),
    [
        ("rw", ALL, Verdict.OK, "are visible"),
        ("rw,hidepid=off", ALL, Verdict.OK, "are visible"),
        ("rw,hidepid=0", ALL, Verdict.OK, "are visible"),
        ("rw", 1 << CAP_SYS_ADMIN, Verdict.OK, "are visible"),
        ("rw", 0, Verdict.NOTE, "sockets owned by other users' processes are not attributed"),
        (
            "rw,gid=4,hidepid=2",
            ALL,
            Verdict.NOTE,
            "hidepid=2: other users' processes and containers are visible only",
        ),
        (
            "rw,hidepid=invisible",
            0,
            Verdict.NOTE,
            "hidepid=invisible: other users' processes and the sockets they own",
        ),
        ("rw,subset=pid", ALL, Verdict.NOTE, "subset=pid: /proc shows only processes"),
        ("rw,hidepid=2,subset=pid", 0, Verdict.NOTE, "visible; subset=pid"),
    ],
)
def test_processes_that_are_hidden(
    tmp_path: Path, options: str, effective: int, verdict: Verdict, said: str
) -> None:
    """Processes hidden by the options of this /proc, or for lack of privileges, are reported with the remedy."""
    check = processes_of(tmp_path, options, effective)
    assert (check.verdict, check.data) == (verdict, verdict is Verdict.OK)
    assert said in check.value
    assert bool(check.remedy) is (verdict is Verdict.NOTE)


def test_processes_in_other_namespaces(tmp_path: Path) -> None:
    """Say what is seen from a PID namespace, and that capabilities in a user namespace give no access outside it."""
    put(tmp_path, "proc/self/ns/pid", "")  # has another inode number than the initial one
    check = facts.check_pid_namespace(tmp_path)
    assert check.verdict is Verdict.NOTE
    assert "(outside)" in check.value
    assert "of this PID namespace" in processes_of(tmp_path, "rw").value
    put(tmp_path, "proc/self/ns/user", "")
    check = processes_of(tmp_path, "rw")
    assert (check.verdict, check.data) == (Verdict.NOTE, False)
    assert "outside the user namespace" in check.remedy


def test_fentry_that_was_not_tried() -> None:
    """A fentry mechanism excluded by --mechanism, or without work, proves nothing about the kernel."""
    events = HookStatus("events", None, (("tp_btf/x", DISABLED),))
    routes = HookStatus("routes", None, (("fexit/x", "there are no events"),))
    for hooks in ((events, routes), (HookStatus("routes", None, (("fexit/x", NOT_CHOSEN),)),)):
        (check,) = facts.fentry_check([LensReport(LENS, hooks)], ())
        assert (check.value, check.data) == ("not tried", "unknown")
    (check,) = facts.fentry_check([LensReport(LENS, (HookStatus("events", "tp_btf/x"), routes))], ())
    assert check.data is False


def test_nettop_unreadable_by_the_calling_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the caller may not read nettop, it stays root, and the report says why; otherwise it says nothing."""
    given: list[DoctorSettings] = []

    def run_doctor(settings: DoctorSettings, *_: object) -> ExitCode:
        given.append(settings)
        return ExitCode.DONE

    monkeypatch.setattr("nettop.doctor.command.run_doctor", run_doctor)
    for why in (
        "nettop stays root: uid 4711 may not read /nowhere",
        "nettop stays root: something else",
        None,
    ):
        monkeypatch.setattr(command, "why_still_root", lambda _, why=why: why)
        assert run(["doctor"]) == ExitCode.DONE
    first, second = (
        check for settings in given for check in facts.check_stays_root(settings.stays_root)
    )  # fmt: skip
    assert (first.verdict, first.value) == (Verdict.NOTE, given[0].stays_root)
    assert "where everybody can read it" in first.remedy
    assert not second.remedy


def test_every_step_has_the_time_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the host's checks, the traffic processes and each lens the time of --timeout, by default 90 s."""
    given: list[DoctorSettings] = []
    monkeypatch.setattr(
        "nettop.doctor.command.run_doctor", lambda settings, *_: given.append(settings) or ExitCode.DONE
    )
    assert run(["doctor"]) == run(["doctor", "--timeout", "300"]) == ExitCode.DONE
    assert [settings.step_s for settings in given] == [90, 300]
    assert run(["doctor", "--timeout", "0"]) == ExitCode.USAGE
    allowed: set[float] = set()

    @contextmanager
    def within(_: str, seconds: float) -> Iterator[None]:
        allowed.add(seconds)
        yield

    monkeypatch.setattr("nettop.doctor.command.within", within)
    monkeypatch.setattr(facts, "within", within)
    make_report(DoctorSettings(traffic=False, step_s=300), lambda _: Scripted(steps([])))
    assert allowed == {300}


TRACEFS = "31 30 0:8 / /sys/kernel/tracing rw - tracefs tracefs rw\n"
OVER_BTF = "32 30 0:9 / /sys/kernel/btf rw - tmpfs tmpfs rw\n"


@pytest.mark.parametrize(
    ("mounts", "remedy"),
    [
        (SYSFS, "CONFIG_DEBUG_INFO_BTF"),
        (SYSFS + TRACEFS, "CONFIG_DEBUG_INFO_BTF"),
        (SYSFS + TRACEFS + OVER_BTF, "umount /sys/kernel/btf;"),
        ("30 20 0:7 / / rw - ext4 /dev/vda rw\n", "mount -t sysfs"),
    ],
)
def test_a_kernel_without_types(tmp_path: Path, mounts: str, remedy: str) -> None:
    """Advise the kernel's option, or to unmount what hides the types, or to mount what shows them."""
    put(tmp_path, "proc/self/mountinfo", mounts)
    check = facts.check_btf(tmp_path)
    with pytest.raises(Unsupported) as refusal:  # every command says the same
        Host(tmp_path).require_bpf()
    assert (check.value, check.remedy) == (refusal.value.what, refusal.value.remedy)
    assert (check.verdict, Report((check,)).exit_code) == (Verdict.BAD, ExitCode.UNSUPPORTED)
    assert remedy in check.remedy
    assert check.remedy.startswith("umount") == ("umount" in check.remedy) == ("umount" in remedy)


def test_files_of_nettop_that_are_lost() -> None:
    """A missing file of nettop is bad, even if the lens works without it."""
    why = f"/opt/nettop/events.bpf.c, {PART_OF_NETTOP}, cannot be read"
    hook = HookStatus("events", None, (("tp_btf/x", why),), remedy="install nettop again")
    (check,) = facts.files_check([LensReport(LENS, (hook,))])
    assert (check.verdict, check.value, check.remedy) == (Verdict.BAD, why, "install nettop again")
    report = Report((check,), (LensReport(LENS, (hook,)),))
    assert report.exit_code is ExitCode.UNSUPPORTED
    assert REPORT_IT not in "\n".join(lines(report))
    assert not list(facts.files_check([LensReport(LENS, (HookStatus("events", "x"),))]))


def test_settings_that_do_harm(tmp_path: Path) -> None:
    """Harmful settings have their effect and remedy; other or missing settings are just shown."""
    for name in facts._SYSCTLS:
        put(tmp_path, f"proc/sys/{name.replace('.', '/')}", "0\n")
    put(tmp_path, "proc/sys/kernel/kptr_restrict", "2\n")
    (tmp_path / "proc/sys/kernel/bpf_stats_enabled").unlink()
    by_key = {check.key: check for check in facts.check_sysctls(tmp_path)}
    assert by_key["kernel.kptr_restrict"].remedy == "sysctl kernel.kptr_restrict=1"
    assert by_key["net.core.bpf_jit_enable"].verdict is Verdict.NOTE
    assert by_key["kernel.unprivileged_bpf_disabled"].verdict is Verdict.OK
    assert "cannot be read" in by_key["kernel.bpf_stats_enabled"].value


def test_a_fact_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    """An empty /proc and /sys stop nothing."""
    checks = facts.host_checks(tmp_path)
    assert {"kernel", "btf", "bcc", "architecture"} <= {check.key for check in checks}
    assert any("cannot be read" in check.value for check in checks)
    assert len({check.key for check in checks}) == len(checks)


# --- redaction ------------------------------------------------------------------------------------------------

_NAMES = {
    "host": ["web-7.corp.example", "web-7"],
    "user": ["alice"],
    "process": ["nginx", "sh"],
    "interface": ["eth0"],
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # A name has the same token in any case and text; a longer name is not cut into a shorter one.
        ("alice on web-7.corp.example: nginx", "user-1 on host-1: process-1"),
        ("ALICE_x by alice eth0:1", "user-1_x by user-1 interface-1:1"),
        ("malice nginx2 sh", "malice nginx2 sh"),
        # Paths of this host alone may name people and projects.
        ("3.11.2 (/srv/acme/venv/bin/python)", "3.11.2 (/path-1)"),
        ("/home/bob/acme/x: /opt/acme, /root", "/home/user-1/path-1: /path-2, /path-3"),
        # Drivers and netfilter write hardware addresses differently.
        ("link MAC=02:11:22:aa:bb:cc up", "link MAC=mac-1 up"),
        ("link MAC=02-11-22-AA-BB-CC up", "link MAC=mac-1 up"),
        ("link MAC=02:11:22:aa:bb:cc:02:11:22:aa:bb:cd:08:00 up", "link MAC=mac-1 up"),
    ],
)
def test_names_are_replaced_by_tokens(text: str, shown: str) -> None:
    """Replace names, paths and hardware addresses by tokens, the same name by the same token."""
    assert ReportRedactor(_NAMES).text(text) == shown


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.sampled_from(["{}", "[{}]:443", "at {}.", "({})", "{}/64"]),
)
def test_no_address_is_left(address: object, around: str) -> None:
    """Addresses are redacted in any context, except loopback and unspecified ones."""
    redact = ReportRedactor({}).text
    parsed = ip_address(str(address))
    shown = redact(around.format(parsed))
    kept = parsed.is_loopback or parsed.is_unspecified
    assert (str(parsed) in shown) is kept
    assert redact(str(parsed)) in shown


@pytest.mark.parametrize(
    "kept",
    ["/usr/lib/python3/dist-packages/bcc", "tp_btf/tcp_probe", "/var/cache/nettop", "/ x", "6.18.44", "12:34:56",
     "bpf_prog::x", "0.26.0 (LLVM 14)", "[    0.1] a:b", "127.0.0.1", "::1"],
)  # fmt: skip
def test_words_of_every_host_stay(kept: str) -> None:
    """Paths that exist everywhere, versions, times and loopback addresses are not redacted."""
    assert ReportRedactor({}).text(kept) == kept


def test_values_of_json() -> None:
    """Values are redacted at any depth, and so are the names of gaps; keys and the report's own words stay."""
    redacted = ReportRedactor({"process": ["sockets", "nginx"], "netns": ["blue"]}).values(
        {
            "hooks": [{"hook": "sockets", "refused": [{"mechanism": "a", "why": "nginx at 10.0.0.9"}]}],
            "gaps": {"namespace blue": "nginx"},
            "count": 3,
        }
    )
    assert redacted == {
        "hooks": [{"hook": "sockets", "refused": [{"mechanism": "a", "why": "process-1 at ipv4-1"}]}],
        "gaps": {"namespace netns-1": "process-1"},
        "count": 3,
    }


# --- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "hosts"), "did you mean host?"),
        (("--format", "jsn"), "did you mean json?"),
        (("--mechanism", "socket=iter"), "did you mean sockets or wire_socket or socket_wait?"),
    ],
)
def test_wrong_words(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are reported with the nearest valid ones before anything is attached."""
    assert run(["doctor", *words], lambda _: Scripted(steps([]))) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_the_report_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output has JSON for programs, and the exit code is 0 if the lens works."""
    words = ["doctor", "--only", "connections", "--no-traffic", "--format", "json"]
    assert run(words, lambda _: Scripted(steps([]))) == ExitCode.DONE
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"] is True
    assert captured.err == ""


class Full(io.StringIO):
    """A full standard output, which fails only at the end."""

    encoding = "utf-8"

    def flush(self) -> None:
        """Fail."""
        raise OSError(errno.ENOSPC, "No space left on device")


class FullDisk(io.BytesIO):
    """A file on a full disk."""

    name = "/full/report.tar.gz"

    def write(self, _: object) -> int:
        """Fail."""
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_output_that_is_full(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full output is reported as by every command."""
    words = ["doctor", "--only", "connections", "--no-traffic", "--format", form]
    monkeypatch.setattr("sys.stdout", Full())
    assert run(words, lambda _: Scripted(steps([]))) == ExitCode.FAILURE
    assert capsys.readouterr().err == "nettop: the output cannot be written: No space left on device\n"


def test_a_bundle_that_cannot_be_written() -> None:
    """A full disk is reported."""
    settings = DoctorSettings(parts=("drops",), traffic=False, format="json")
    with pytest.raises(NettopError, match=r"/full/report.tar.gz cannot be written: No space left"):
        run_doctor(settings, lambda _: Scripted(steps([])), io.StringIO(), FullDisk())


@pytest.mark.parametrize(
    ("words", "is_answering", "number"),
    [
        (["doctor", "--no-traffic"], True, signal.SIGINT),
        (["check"], True, signal.SIGTERM),
        (["--table"], False, signal.SIGHUP),
    ],
)
def test_interrupted(
    words: list[str], is_answering: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code of an interrupted doctor, or check, differs from success, and cleanup is complete."""
    monkeypatch.setattr("sys.argv", ["nettop", *words])
    monkeypatch.setattr(cli, "run", lambda _: signal.raise_signal(number))
    assert cli.main() == (128 + number if is_answering else ExitCode.DONE)


def test_a_bundle_that_is_not_finished_is_taken_away(tmp_path: Path) -> None:
    """An aborted examination leaves no partial bundle, and does not touch an existing one."""

    def ended(_: str) -> Scripted:
        raise KeyboardInterrupt

    file = tmp_path / "bundle.tar.gz"
    with pytest.raises(KeyboardInterrupt):
        run(["doctor", "--only", "drops", "--no-traffic", "--bundle", str(file)], ended)
    assert not file.exists()
    file.write_text("mine")
    assert run(["doctor", "--bundle", str(file)], ended) == ExitCode.FAILURE
    assert file.read_text() == "mine"
