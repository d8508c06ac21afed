# SPDX-License-Identifier: Apache-2.0
"""Broken, hostile and random datagrams against the collector of flows.

`.venv/bin/python bench/fuzz.py mutated FILE.pcap…` sends the datagrams of captures to a collector; `floods` sends
it templates without end, exporters without end, and sequence numbers that jump. `guided FILE.pcap… --seconds N` has
atheris look for inputs that reach new code of the decoder, and `agree --seconds N` for messages that it reads
differently from the plain decoder of the tests (pip install atheris). Each time no traceback may come of it,
memory stays bounded, every datagram is in exactly one count, and what is whole is decoded afterwards.
"""

import argparse
import importlib
import itertools
import os
import random
import resource
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from measure import Figure, report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from captures import datagrams  # noqa: E402 - beside this file

from tests.collecting import Running, until  # noqa: E402 - the checkout comes first
from tests.unit.test_flow_decoder import NETFLOW_5, check  # noqa: E402
from tests.unit.test_flow_messages import Sent, a_set, batch, message, template_set  # noqa: E402

IN_FLIGHT = 20_000
"""Datagrams that are sent before the collector has counted those before: its receive buffer holds them."""
MEMORY_MOST_MB = 1200
"""Of all processes of the collector, at its peak (acceptance of `nettop collect`)."""
FLOOD = 200_000
SENDERS_MOST = 500

Exports = Iterator[tuple[str, bytes]]
"""Datagrams, each with the address of this host that it is sent from."""


def processes(session: int) -> Iterator[Path]:
    """The directories in /proc of a session's processes."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield path


def peak_mb(path: Path) -> float:
    """The most memory that a process has taken, that of its libraries included."""
    lines = (path / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


class Senders:
    """Sockets bound to addresses of this host, the last of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: dict[str, socket.socket] = {}

    def send(self, address: str, content: bytes) -> None:
        """Send a datagram from there."""
        if address not in self._sockets:
            if len(self._sockets) == SENDERS_MOST:
                self._sockets.pop(next(iter(self._sockets))).close()
            self._sockets[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._sockets[address].bind((address, 0))
        self._sockets[address].sendto(content, ("127.0.0.1", self._port))

    def close(self) -> None:
        """Close all."""
        for each in self._sockets.values():
            each.close()


def survives(title: str, exports: Callable[[], Exports]) -> list[Figure]:
    """Send all to a new collector, and look at it afterwards."""
    with ExitStack() as ends:
        parent = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="nettop-fuzz")))
        parent.chmod(0o755)  # for the user that the collector becomes
        running = ends.enter_context(Running(parent / "flows"))
        running.send(NETFLOW_5)
        arrived(running, 1)
        count = send_all(running, exports())
        running.send(NETFLOW_5)
        arrived(running, count + 2)
        until(lambda: is_stored(running.state()), "all is stored")
        state = running.state()
        ((rows,),) = running.rows("SELECT toUInt32(count()) FROM flows_raw")
        ((whole,),) = running.rows(WHOLE)
        paths = list(processes(running.process.pid))
        memory = sum(map(peak_mb, paths))
        status = running.end()
        for name, number in {
            **state["forgotten"],
            **state["exporters"],
            "broken": state["ledger"].get("broken", 0),
        }.items():
            print(f"  {title}: {name}: {number}")
        print(running.errors(), file=sys.stderr)
        return [
            Figure(f"{title}: datagrams", count, ""),
            Figure(f"{title}: malformed", state["datagrams"]["malformed"], ""),
            Figure(f"{title}: dropped by the kernel", state["datagrams"]["dropped_by_kernel"], "", 0),
            Figure(f"{title}: flows", state["flows"]["received"], ""),
            Figure(f"{title}: flows received and not stored", abs(state["flows"]["received"] - rows), "", 0),
            Figure(f"{title}: sets without a template", state["sets_without_template"]["held"], ""),
            Figure(f"{title}: of them forgotten", state["sets_without_template"]["forgotten"], ""),
            Figure(f"{title}: flows lost of whole datagrams around it", abs(4 - whole), "", 0),
            Figure(f"{title}: memory of {len(paths)} processes at its peak", memory, "MB", MEMORY_MOST_MB),
            Figure(f"{title}: tracebacks", running.errors().count("Traceback"), "", 0),
            Figure(f"{title}: exit status", abs(status), "", 0),
        ]


WHOLE = (
    "SELECT toUInt32(count()) FROM flows_raw WHERE protocol_version = 5 AND bytes IN (84, 700) "
    "AND exporter = toIPv6('127.0.0.1')"
)
"""The flows of what is sent before and after, from another address than all else."""


def send_all(running: Running, exports: Exports) -> int:
    """Send them, as fast as they are received; returns how many they are."""
    senders, count = Senders(running.port), 0
    for address, content in exports:
        senders.send(address, content)
        count += 1
        if count % IN_FLIGHT == 0:
            arrived(running, count + 1)
    arrived(running, count + 1)
    senders.close()
    return count


def is_stored(state: dict[str, Any]) -> bool:
    """Whether nothing waits, to be decoded or to be stored."""
    return not (state["datagrams"]["queued"] or state["flows"]["pending"] or state["flows"]["waiting"])


def arrived(running: Running, count: int) -> None:
    """Wait until so many datagrams have arrived since the start."""
    until(lambda: running.state()["datagrams"]["arrived"] == count, f"{count} datagrams have arrived")


# --- what is sent -----------------------------------------------------------------------------------------------


def of_captures(paths: list[Path]) -> Exports:
    """The datagrams of captures, each exporter from another address."""
    hosts: dict[str, str] = {}
    for path in paths:
        for each in datagrams(path.read_bytes()):
            number = len(hosts)
            yield hosts.setdefault(each.exporter, f"127.80.{number // 250}.{number % 250 + 1}"), each.content


def templates() -> Exports:
    """Each datagram declares another template of another domain."""
    fields = [(0, number, 4) for number in range(1, 20)]
    for number in range(FLOOD):
        declared = template_set(10, 256 + number % 60_000, fields)
        yield "127.81.0.1", message(10, declared, domain=number // 60_000 + number % 7000).data


def sets_without_template() -> Exports:
    """Data of templates that never come."""
    content = os.urandom(1200)
    for number in range(FLOOD):
        head = struct.pack("!HHIII", 10, 20 + len(content), 0, number, number % 5000)
        yield "127.82.0.1", head + struct.pack("!HH", 256 + number % 60_000, 4 + len(content)) + content


def exporters() -> Exports:
    """Each datagram is of another exporter: an agent of sFlow, or an address that declares a template."""
    for number in range(FLOOD // 2):
        agent = struct.pack("!IIIIIII", 5, 1, 0x0A000000 + number, number, 1, 1, 0)
        yield spoofed(83, number), agent
        yield spoofed(87, number), message(9, template_set(9, 256, [(0, 1, 4)]), domain=number).data


def garbage() -> Exports:
    """Each datagram is of another address, and of no protocol."""
    source = random.Random(7)
    return ((spoofed(91, number), source.randbytes(60)) for number in range(FLOOD))


def spoofed(first: int, number: int) -> str:
    """An address of this host for each number."""
    return f"127.{first + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"


def jumps() -> Exports:
    """Sequence numbers that have nothing to do with each other."""
    source = random.Random(7)
    sflow = struct.Struct("!IIIIIII")
    for _ in range(FLOOD // 4):
        number = source.getrandbits(32)
        yield "127.84.0.1", NETFLOW_5[:16] + struct.pack("!I", number) + NETFLOW_5[20:]
        for version in (9, 10):
            yield "127.84.0.1", message(version, domain=number % 100, sequence=number).data
        yield "127.84.0.1", sflow.pack(5, 1, 0x0A000000, 0, number, 1, 0)


def short_records() -> Exports:
    """Records of a byte, so that datagrams hold thousands, some of them with a thousand empty fields."""
    empty = [(0, 1000 + number, 0) for number in range(1000)]
    for domain, fields in enumerate(([(0, 4, 1)], [*empty, (0, 4, 1)])):
        yield "127.86.0.1", message(10, template_set(10, 300, fields), domain=domain).data
        content = message(10, a_set(300, bytes(9000)), domain=domain).data
        yield from itertools.repeat(("127.86.0.1", content), 500)


def withdrawals() -> Exports:
    """A domain with many templates, and datagrams full of withdrawals of others."""
    declared = [struct.pack("!HHHH", number, 1, 1, 4) for number in range(256, 10_256)]
    for at in range(0, len(declared), 1000):
        yield "127.85.0.1", message(10, a_set(2, b"".join(declared[at : at + 1000]))).data
    content = message(
        10, a_set(2, b"".join(struct.pack("!HH", 60_000 + number, 0) for number in range(2000)))
    ).data
    for _ in range(100):
        yield "127.85.0.1", content


# --- guided by what code is reached -----------------------------------------------------------------------------


def guided(captures: list[Path], corpus: Path, seconds: int) -> None:
    """Atheris with the decoder; it ends the process, with a traceback and an input if something is wrong."""
    decoder_class = instrumented("nettop.flows.decode.decoder").Decoder

    def decode(content: bytes) -> None:
        decoder, parts = decoder_class(), unpacked(content)
        for some in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
            if some:
                decoder.decode(batch(some))
                check(decoder)

    for number, seed in enumerate(itertools.chain.from_iterable(map(seeds, captures))):
        (corpus / str(number)).write_bytes(seed)
    fuzz(decode, corpus, seconds)


def agree(corpus: Path, seconds: int) -> None:
    """Atheris with messages as a property test draws them; it ends the process where the decoders differ."""
    tests = instrumented("tests.unit.test_flow_messages")
    fuzz(tests.test_flows_are_what_a_plain_decoder_reads.hypothesis.fuzz_one_input, corpus, seconds)


def instrumented(name: str) -> ModuleType:
    """A module; atheris sees which code of the decoder is reached by its functions."""
    import atheris  # type: ignore[import-untyped]

    for each in [each for each in sys.modules if each.startswith(("nettop.flows", "tests"))]:
        del sys.modules[each]
    with atheris.instrument_imports(include=["nettop.flows.decode"]):
        return importlib.import_module(name)


def fuzz(target: Callable[[bytes], object], corpus: Path, seconds: int) -> None:
    """Have atheris call it with inputs made of those in a directory, where it keeps new ones; then end."""
    import atheris

    bounds = (f"-max_total_time={seconds}", f"-max_len={INPUT_MOST}", "-rss_limit_mb=2048", "-timeout=10")
    words = ("-len_control=0", f"-artifact_prefix={corpus}/failed-", "-print_final_stats=1", str(corpus))
    atheris.Setup([sys.argv[0], *bounds, *words], target)
    atheris.Fuzz()


INPUT_MOST = 8192
DATAGRAMS_MOST = 8


def seeds(path: Path) -> Iterator[bytes]:
    """Inputs of a capture: several datagrams each, as `unpacked` reads them."""
    packed: list[bytes] = []
    for each in datagrams(path.read_bytes()):
        content = struct.pack("!H", len(each.content)) + each.content
        if packed and (len(packed) == DATAGRAMS_MOST or sum(map(len, packed)) + len(content) > INPUT_MOST):
            yield b"".join(packed)
            packed = []
        packed.append(content)
    yield b"".join(packed)


def unpacked(content: bytes) -> list[Sent]:
    """The datagrams in an input, each behind its length."""
    parts: list[Sent] = []
    at = 0
    while at + 2 <= len(content) and len(parts) < DATAGRAMS_MOST:
        (length,) = struct.unpack_from("!H", content, at)
        parts.append(Sent(bytes(16), 1, content[at + 2 : at + 2 + length]))
        at += 2 + length
    return parts


def main() -> int:
    """Do what the first word says; returns 1 if something is over its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("how", choices=("mutated", "floods", "guided", "agree"))
    parser.add_argument("--seconds", type=int, default=600, help="how long guided and agree take")
    parser.add_argument(
        "--corpus", type=Path, help="where guided and agree keep inputs, to go on from another time"
    )
    parser.add_argument("--only", help="the flood of this name")
    parser.add_argument("files", type=Path, nargs="*", help="captures")
    options = parser.parse_intermixed_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    options.corpus = options.corpus or Path(tempfile.mkdtemp(prefix="nettop-corpus"))
    options.corpus.mkdir(exist_ok=True)
    if options.how == "guided":
        guided(options.files, options.corpus, options.seconds)
    if options.how == "agree":
        agree(options.corpus, options.seconds)
    if options.how == "mutated":
        parts = {"mutated": lambda: of_captures(options.files)}
    else:
        parts = {
            "templates": templates,
            "sets without template": sets_without_template,
            "exporters": exporters,
            "garbage": garbage,
            "jumping sequence numbers": jumps,
            "withdrawals": withdrawals,
            "short records": short_records,
        }
    chosen = {title: exports for title, exports in parts.items() if options.only in (None, title)}
    figures = [figure for title, exports in chosen.items() for figure in survives(title, exports)]
    report(options.how, figures)
    return int(not all(figure.kept for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
