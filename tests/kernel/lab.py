# SPDX-License-Identifier: Apache-2.0
"""Network namespaces joined by veth pairs, and worker processes that live in them.

Everything here ends with its Lab: workers die with the process that forked them (PR_SET_PDEATHSIG), and a new
Lab removes the namespaces that a killed run left behind.
"""

import contextlib
import ctypes
import gc
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEADERS = REPOSITORY / "nettop" / "kernel" / "bpf" / "headers"
NETNS_FOLDER = Path("/run/netns")
PREFIX = "ntlab"
CLONE_NEWNET = 0x40000000
PATIENCE = float(os.environ.get("NETTOP_TEST_PATIENCE", "1"))
"""Every deadline is this many times longer: on an emulated machine."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

Value = TypeVar("Value")
libc = ctypes.CDLL(None, use_errno=True)
_numbers = count()


class NotInTimeError(AssertionError):
    """A condition was still false at its deadline."""


def until(condition: Callable[[], Value], what: str, deadline_s: float = 30) -> Value:
    """Return the first true value of `condition`, evaluated every 5 ms; raise NotInTimeError at the deadline."""
    end = time.monotonic() + deadline_s * PATIENCE
    while not (value := condition()):
        if time.monotonic() > end:
            raise NotInTimeError(f"{what}: not within {deadline_s * PATIENCE:g} s")
        select.select([], [], [], 0.005)
    return value


def missing() -> str | None:
    """Return the reason why this machine cannot run kernel tests; None if it can."""
    if os.geteuid() != 0:
        return "kernel tests need root"
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return "this kernel has no BTF (/sys/kernel/btf/vmlinux)"
    return None


def ip(*words: str) -> str:
    """Run iproute2 and return its output; raise RuntimeError with its message."""
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def enter(namespace: str) -> None:
    """Move the calling thread into the named network namespace."""
    descriptor = os.open(NETNS_FOLDER / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(descriptor)


def set_name(name: bytes) -> None:
    """Rename the calling thread (its comm)."""
    libc.prctl(PR_SET_NAME, name, 0, 0, 0)


def process_state(pid: int) -> str:
    """Return the letter of /proc/PID/stat: R, S, T (stopped), Z …; "" once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def compiled(source: Path, folder: Path) -> Path:
    """Return the compiled program of a C file; skip the test without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = folder / source.stem
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


class Namespace:
    """A network namespace of a Lab, with a name in /run/netns and an inode number.

    Anything that happened under that number before `made_ns` (wall clock) belongs to a removed namespace.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        self.made_ns = time.time_ns()
        self.inode = os.stat(NETNS_FOLDER / name).st_ino
        ip("-n", name, "link", "set", "lo", "up")
        self.sysctls({"net.ipv6.ip_nonlocal_bind": 1, "net.ipv4.tcp_no_metrics_save": 1})

    def sysctl(self, key: str, value: object) -> None:
        """Set a value of /proc/sys in this namespace."""
        self.sysctls({key: value})

    def sysctls(self, values: Mapping[str, object]) -> None:
        """Set values of /proc/sys in this namespace."""
        self.run("sysctl", "-qw", *(f"{key}={value}" for key, value in values.items()))

    def ip(self, *words: str) -> str:
        """Run iproute2 in this namespace."""
        return ip("-n", self.name, *words)

    def link(self, device: str) -> dict[str, Any]:
        """Return what iproute2 says of a device, with its counters."""
        return dict(json.loads(self.ip("-j", "-s", "-s", "link", "show", device))[0])

    def run(self, *command: str) -> str:
        """Run a command in this namespace and return its output; raise RuntimeError with its message."""
        words = ["ip", "netns", "exec", self.name, *command]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def ip_batch(self, *lines: str) -> None:
        """Run iproute2 in this namespace once for all these commands: an emulated machine starts programs slowly."""
        command = ["ip", "-n", self.name, "-batch", "-"]
        subprocess.run(command, input="\n".join(lines) + "\n", text=True, check=True, capture_output=True)

    def remove(self) -> None:
        """Remove the name; the kernel keeps the namespace while a socket or process is in it."""
        with contextlib.suppress(RuntimeError):
            ip("netns", "del", self.name)


class End:
    """One end of a veth pair: its addresses, and two networks in which every address is local to this end."""

    def __init__(self, namespace: Namespace, side: int) -> None:
        self.namespace, self.side = namespace, side
        self.device = f"veth{side}"
        self.v4, self.v6 = f"10.78.0.{side}", f"fd78::{side}"
        self.mac = f"02:00:00:00:00:{side:02}"

    def address(self, number: int, version: int = 4) -> str:
        """Return one of the 65,000 further addresses of this end."""
        if version == 4:
            return f"10.{80 + self.side}.{number >> 8}.{number & 255}"
        return f"fd8{self.side}::{number:x}"

    def link(self) -> dict[str, Any]:
        """Return what iproute2 says of this device."""
        return self.namespace.link(self.device)

    def configure(self, peer: "End") -> None:
        """Set addresses and routes, and switch off segmentation offload, so that one packet is one segment.

        Neighbours are permanent: packets would queue while addresses are resolved, and too many be dropped.
        """
        own, far = self.side, peer.side
        self.namespace.ip_batch(
            f"addr add {self.v4}/24 dev {self.device}",
            f"addr add {self.v6}/64 dev {self.device} nodad",
            f"link set {self.device} up gso_max_segs 1",
            *(
                f"neigh add {address} lladdr {peer.mac} dev {self.device} nud permanent"
                for address in (peer.v4, peer.v6)
            ),
            f"route add local 10.{80 + own}.0.0/16 dev lo",
            f"route add local fd8{own}::/64 dev lo",
            f"route add 10.{80 + far}.0.0/16 dev {self.device} via {peer.v4} rto_min 5ms",
            f"route add fd8{far}::/64 dev {self.device} via {peer.v6} rto_min 5ms",
        )

    def initial_window(self, peer: "End", number: int, segments: int) -> None:
        """Set the initial congestion window of connections to that address of the peer."""
        route = f"{peer.address(number)}/32 dev {self.device} via {peer.v4} rto_min 5ms initcwnd {segments}"
        self.namespace.ip("route", "add", *route.split())

    def queue_up(self, rate: str) -> None:
        """Queue packets before this device at this rate, so that each connection has its own round-trip time."""
        self.limit("rate", rate, "burst", "3000", "limit", "50000000")

    def limit(self, *words: str) -> None:
        """Limit the queue of this device (tc-tbf)."""
        self.namespace.run("tc", "qdisc", "replace", "dev", self.device, "root", "tbf", *words)


class Lab:
    """Namespaces, workers and droppers of one test, removed at its end whatever happens."""

    def __init__(self) -> None:
        self._name = f"{PREFIX}{os.getpid()}n{next(_numbers)}"
        self._exit = contextlib.ExitStack()
        self._labels = count()

    def __enter__(self) -> Self:
        sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def namespace(self) -> Namespace:
        """Return a new, empty network namespace with loopback up."""
        namespace = Namespace(f"{self._name}x{next(self._labels)}")
        self._exit.callback(namespace.remove)
        return namespace

    def pair(self) -> tuple[End, End]:
        """Return two new namespaces joined by a veth pair, with IPv4 and IPv6."""
        first, second = End(self.namespace(), 1), End(self.namespace(), 2)
        ends = f"{first.device} address {first.mac} type veth peer name {second.device} address {second.mac}"
        first.namespace.ip("link", "add", *ends.split(), "netns", second.namespace.name)
        first.configure(second)
        second.configure(first)
        for end in (first, second):
            self._exit.callback(end.namespace.remove)
            until(lambda end=end: "LOWER_UP" in end.link()["flags"], f"{end.device} is up")
        return first, second

    def routed_pair(self) -> tuple[Namespace, Namespace, Namespace]:
        """Return two new namespaces, 10.76.1.1 and 10.76.2.1, each with a device `wire` to a router between them."""
        near, router, far = self.namespace(), self.namespace(), self.namespace()
        router.sysctl("net.ipv4.ip_forward", 1)
        for number, end in ((1, near), (2, far)):
            router.ip("link", "add", f"to{number}", "type", "veth", "peer", "name", "wire", "netns", end.name)
            router.ip("addr", "add", f"10.76.{number}.2/24", "dev", f"to{number}")
            router.ip("link", "set", f"to{number}", "up")
            end.ip("addr", "add", f"10.76.{number}.1/24", "dev", "wire")
            end.ip("link", "set", "wire", "up")
            end.ip("route", "add", "default", "via", f"10.76.{number}.2")
        return near, router, far

    def machine_sysctl(self, key: str, value: object) -> None:
        """Set a value of /proc/sys for the whole machine, until the lab ends or its process is killed."""
        path = Path("/proc/sys", *key.split("."))
        restore = ["sh", "-c", 'cat; echo "$0" > "$1"', path.read_text().strip(), str(path)]
        guard = subprocess.Popen(restore, stdin=subprocess.PIPE, start_new_session=True)
        self._exit.callback(guard.communicate)  # closes its input, and waits for it
        path.write_text(f"{value}\n")

    def worker(self, namespace: Namespace | None = None, name: str = "labworker") -> "Worker":
        """Return a new process in that namespace, idle until `start` or `call`."""
        worker = Worker(namespace.name if namespace else None, name)
        self._exit.callback(worker.end)
        return worker

    def dropper(self, end: End) -> "Dropper":
        """Return a program on that end's device that drops the packets of a rule."""
        dropper = Dropper(end)
        self._exit.callback(dropper.end)
        return dropper


def sweep() -> None:
    """Remove the namespaces of labs whose process is gone."""
    if not NETNS_FOLDER.is_dir():
        return
    for path in NETNS_FOLDER.iterdir():
        match = re.match(rf"{PREFIX}(\d+)n", path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            with contextlib.suppress(RuntimeError):
                ip("netns", "del", path.name)


class WorkerError(AssertionError):
    """A function failed in a worker; the message is the worker's traceback."""


class Worker:
    """A process that runs functions of the tests, each with the worker's own memory as its first argument."""

    def __init__(self, namespace: str | None, name: str) -> None:
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(theirs, namespace, name)
        theirs.close()
        self.result()  # it is in its namespace, whose name may be taken away from now on

    def start(self, function: Callable[..., object], *arguments: object) -> None:
        """Tell the worker to run `function(memory, *arguments)` without waiting for the result."""
        self._pipe.send((function, arguments))

    def result(self, deadline_s: float = 60) -> Any:
        """Return the started function's result."""
        if not self._pipe.poll(deadline_s * PATIENCE):
            raise NotInTimeError(f"worker {self.pid} gave no answer within {deadline_s * PATIENCE:g} s")
        failed, value = self._pipe.recv()
        if failed:
            raise WorkerError(value)
        return value

    def has_answered(self) -> bool:
        """Return whether the started function has ended."""
        return bool(self._pipe.poll(0))

    def call(self, function: Callable[..., object], *arguments: object) -> Any:
        """Run `function(memory, *arguments)` in the worker and return what it returns."""
        self.start(function, *arguments)
        return self.result()

    def stop(self) -> None:
        """Freeze the process (SIGSTOP) and wait until it is stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: process_state(self.pid) == "T", f"worker {self.pid} is stopped")

    def go_on(self) -> None:
        """Let a stopped process continue."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill the process and wait for it; do nothing if it has ended."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self._pipe.close()
            self.pid = 0


def die_with_parent() -> None:
    """Have the kernel kill the calling process when its parent ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def settle_child(name: str) -> None:
    """Set up a forked child: die with the parent, ignore Ctrl-C, use a separate name."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_name(name.encode())


def _serve(pipe: Any, namespace: str | None, name: str) -> NoReturn:
    """Run in the worker: report readiness, then answer requests one by one until the pipe closes."""
    status = 1
    try:
        settle_child(name)
        gc.freeze()  # what the parent has dropped would close descriptors that are this process's by then
        os.closerange(3, pipe.fileno())
        os.closerange(pipe.fileno() + 1, 20000)
        if namespace:
            enter(namespace)
        memory: dict[Any, Any] = {}
        answer: tuple[bool, object] = False, None
        while True:
            pipe.send(answer)
            function, arguments = pipe.recv()
            try:
                answer = False, function(memory, *arguments)
            except Exception:  # noqa: BLE001 - the caller gets it
                answer = True, traceback.format_exc()
    except EOFError:
        status = 0
    except BaseException:  # noqa: BLE001 - there is no other way to report it
        os.write(2, traceback.format_exc().encode())  # sys.stderr may be a file that was closed above
    finally:
        os._exit(status)  # a forked child must not return into pytest, whatever happens


class Dropper:
    """A child that holds an XDP program on a device; the program is removed when the child ends."""

    FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

    def __init__(self, end: End) -> None:
        command = [sys.executable, str(Path(__file__).with_name("drop.py")), end.namespace.name, end.device]
        how: Any = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        }
        self._child = subprocess.Popen(command, env={"BCC_KERNEL_SOURCE": str(HEADERS), **os.environ}, **how)
        self._request({})

    def rule(
        self,
        *,
        every: int = 1,
        with_flags: int = 0,
        without_flags: int = 0,
        data: bool | None = None,
        port: int = 0,
    ) -> None:
        """Drop every Nth TCP packet with these flags (with or without data, and with that port on either side)."""
        flags = {"mask": with_flags | without_flags, "value": with_flags}
        self._request({"every": every, **flags, "data": {None: 0, True: 1, False: 2}[data], "port": port})

    def nothing(self) -> None:
        """Stop dropping."""
        self._request({"every": 0})

    def dropped(self) -> int:
        """Return the number of packets dropped since the start."""
        return int(self._request({})["dropped"])

    def _request(self, request: dict[str, int]) -> dict[str, Any]:
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, "the dropper's child ended"
        return dict(json.loads(answer))

    def end(self) -> None:
        """End the child, and with it the program."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
    """Yield a Lab inside the `with` block."""
    with Lab() as lab:
        yield lab
