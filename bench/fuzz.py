# SPDX-License-Identifier: Apache-2.0
"""Send broken, hostile and random datagrams to the flow collector.

`.venv/bin/python bench/fuzz.py mutated FILE.pcap…` sends the datagrams of captures to a collector; `floods` sends
endless templates, endless exporters, and sequence numbers that jump. `guided FILE.pcap… --seconds N` has atheris search
for inputs that reach new code of the decoder (pip install atheris). In all cases there must be no traceback, memory
must stay bounded, every datagram must be in exactly one count, and intact datagrams must still be decoded afterwards.
"""

import argparse
import importlib
import itertools
import os
import random
import resource
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from captures import datagrams
from collecting import Senders, all_stored, arrived, collector
from measure import Figure, judge
from programs import resident_mb, session

from tests.builders.exports import NETFLOW_5
from tests.builders.flow_messages import Sent, a_set, batch, message, template_set
from tests.collecting import Running
from tests.unit.test_flow_decoder import check

IN_FLIGHT = 20_000
"""Datagrams sent before the collector has counted earlier ones: as many as its receive buffer holds."""
MEMORY_MOST_MB = 1200
"""Bound on the peak memory of all the collector's processes (acceptance of `nettop collect`)."""
FLOOD = 200_000

Exports = Iterator[tuple[str, bytes]]
"""Datagrams, each with its source address on this host."""


def survives(title: str, exports: Exports) -> Iterator[Figure]:
    """Send datagrams to a new collector, and check it afterwards."""
    with collector() as running:
        running.send(NETFLOW_5)
        arrived(running, 1)
        count = send_all(running, exports)
        running.send(NETFLOW_5)
        arrived(running, count + 2)
        all_stored(running)
        state = running.state()
        ((rows,),) = running.rows("SELECT toUInt32(count()) FROM flows_raw")
        ((whole,),) = running.rows(WHOLE)
        pids = session(running.process.pid)
        memory = sum(resident_mb(pid, "VmHWM") for pid in pids) * 1e6 / (1 << 20)
        status = running.end()
        broken = {"broken": state["ledger"].get("broken", 0)}
        for name, number in {**state["forgotten"], **state["exporters"], **broken}.items():
            print(f"  {title}: {name}: {number}")
        print(running.errors(), file=sys.stderr)
        received, held = state["flows"]["received"], state["sets_without_template"]
        for what, value, *unit_and_bound in (
            ("datagrams", count),
            ("malformed", state["datagrams"]["malformed"]),
            ("dropped by the kernel", state["datagrams"]["dropped_by_kernel"], "", 0),
            ("flows", received),
            ("flows received but not stored", abs(received - rows), "", 0),
            ("sets without a template", held["held"]),
            ("forgotten sets without a template", held["forgotten"]),
            ("flows lost from intact datagrams", abs(4 - whole), "", 0),
            (f"peak memory of {len(pids)} processes", memory, "MB", MEMORY_MOST_MB),
            ("tracebacks", running.errors().count("Traceback"), "", 0),
            ("exit status", abs(status), "", 0),
        ):
            yield Figure(f"{title}: {what}", value, *unit_and_bound)


WHOLE = (
    "SELECT toUInt32(count()) FROM flows_raw WHERE protocol_version = 5 AND bytes IN (84, 700) "
    "AND exporter = toIPv6('127.0.0.1')"
)
"""The flows of the intact datagrams sent before and after, from a separate address."""


def send_all(running: Running, exports: Exports) -> int:
    """Send datagrams as fast as the collector receives them; return their number."""
    count = 0
    with closing(Senders(running.port)) as senders:
        for address, content in exports:
            senders.send(address, content)
            count += 1
            if count % IN_FLIGHT == 0:
                arrived(running, count + 1)
        arrived(running, count + 1)
    return count


# --- datagrams --------------------------------------------------------------------------------------------------


def of_captures(paths: list[Path]) -> Exports:
    """Yield the datagrams of captures, using a different address for each exporter."""
    hosts: dict[str, str] = {}
    for path in paths:
        for datagram in datagrams(path.read_bytes()):
            number = len(hosts)
            yield (
                hosts.setdefault(datagram.exporter, f"127.80.{number // 250}.{number % 250 + 1}"),
                datagram.content,
            )


def templates() -> Exports:
    """Yield datagrams that each declare a new template of another domain."""
    fields = [(0, number, 4) for number in range(1, 20)]
    for number in range(FLOOD):
        declared = template_set(10, 256 + number % 60_000, fields)
        yield "127.81.0.1", message(10, declared, domain=number // 60_000 + number % 7000).data


def sets_without_template() -> Exports:
    """Yield data whose templates never come."""
    content = os.urandom(1200)
    for number in range(FLOOD):
        head = struct.pack("!HHIII", 10, 20 + len(content), 0, number, number % 5000)
        yield "127.82.0.1", head + struct.pack("!HH", 256 + number % 60_000, 4 + len(content)) + content


def exporters() -> Exports:
    """Yield datagrams, each from a new exporter: an sFlow agent, or an address that declares a template."""
    for number in range(FLOOD // 2):
        agent = struct.pack("!IIIIIII", 5, 1, 0x0A000000 + number, number, 1, 1, 0)
        yield spoofed(83, number), agent
        yield spoofed(87, number), message(9, template_set(9, 256, [(0, 1, 4)]), domain=number).data


def garbage() -> Exports:
    """Return random datagrams, each from a different address."""
    source = random.Random(7)
    return ((spoofed(91, number), source.randbytes(60)) for number in range(FLOOD))


def spoofed(first: int, number: int) -> str:
    """Map a number to an address of this host."""
    return f"127.{first + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"


def jumps() -> Exports:
    """Yield datagrams with unrelated sequence numbers."""
    source = random.Random(7)
    sflow = struct.Struct("!IIIIIII")
    for _ in range(FLOOD // 4):
        number = source.getrandbits(32)
        yield "127.84.0.1", NETFLOW_5[:16] + struct.pack("!I", number) + NETFLOW_5[20:]
        for version in (9, 10):
            yield "127.84.0.1", message(version, domain=number % 100, sequence=number).data
        yield "127.84.0.1", sflow.pack(5, 1, 0x0A000000, 0, number, 1, 0)


def short_records() -> Exports:
    """Yield datagrams with thousands of one-byte records, some with a thousand empty fields."""
    empty = [(0, 1000 + number, 0) for number in range(1000)]
    for domain, fields in enumerate(([(0, 4, 1)], [*empty, (0, 4, 1)])):
        yield "127.86.0.1", message(10, template_set(10, 300, fields), domain=domain).data
        content = message(10, a_set(300, bytes(9000)), domain=domain).data
        yield from itertools.repeat(("127.86.0.1", content), 500)


def withdrawals() -> Exports:
    """Yield a domain with many templates, and datagrams full of withdrawals of others."""
    declared = [struct.pack("!HHHH", number, 1, 1, 4) for number in range(256, 10_256)]
    for at in range(0, len(declared), 1000):
        yield "127.85.0.1", message(10, a_set(2, b"".join(declared[at : at + 1000]))).data
    content = message(
        10, a_set(2, b"".join(struct.pack("!HH", 60_000 + number, 0) for number in range(2000)))
    ).data
    for _ in range(100):
        yield "127.85.0.1", content


FLOODS = {
    "templates": templates,
    "sets without template": sets_without_template,
    "exporters": exporters,
    "garbage": garbage,
    "jumping sequence numbers": jumps,
    "withdrawals": withdrawals,
    "short records": short_records,
}


# --- guided by coverage -----------------------------------------------------------------------------------------


def guided(captures: list[Path], corpus: Path, seconds: int) -> None:
    """Fuzz the decoder with inputs derived from captures and those that a corpus has from earlier runs.

    atheris exits the process; on a fault it leaves a traceback and the input.
    """
    import atheris  # type: ignore[import-untyped]

    for name in [name for name in sys.modules if name.startswith("nettop.collector")]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["nettop.collector.decode"]):
        decoder_class = importlib.import_module("nettop.collector.decode.decoder").Decoder

    def decode(content: bytes) -> None:
        decoder, parts = decoder_class(), unpacked(content)
        for some in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
            if some:
                decoder.decode(batch(some))
                check(decoder)

    for number, seed in enumerate(itertools.chain.from_iterable(map(seeds, captures))):
        (corpus / str(number)).write_bytes(seed)
    bounds = (f"-max_total_time={seconds}", f"-max_len={INPUT_MOST}", "-rss_limit_mb=2048", "-timeout=10")
    words = ("-len_control=0", f"-artifact_prefix={corpus}/failed-", "-print_final_stats=1", str(corpus))
    atheris.Setup([sys.argv[0], *bounds, *words], decode)
    atheris.Fuzz()


INPUT_MOST = 8192
DATAGRAMS_MOST = 8


def seeds(path: Path) -> Iterator[bytes]:
    """Yield inputs from a capture, several datagrams each, in the format of `unpacked`."""
    packed: list[bytes] = []
    for datagram in datagrams(path.read_bytes()):
        content = struct.pack("!H", len(datagram.content)) + datagram.content
        if packed and (len(packed) == DATAGRAMS_MOST or sum(map(len, packed)) + len(content) > INPUT_MOST):
            yield b"".join(packed)
            packed = []
        packed.append(content)
    yield b"".join(packed)


def unpacked(content: bytes) -> list[Sent]:
    """Return the datagrams in an input, where a length precedes each."""
    parts: list[Sent] = []
    at = 0
    while at + 2 <= len(content) and len(parts) < DATAGRAMS_MOST:
        (length,) = struct.unpack_from("!H", content, at)
        parts.append(Sent(bytes(16), 1, content[at + 2 : at + 2 + length]))
        at += 2 + length
    return parts


def main() -> int:
    """Run the chosen mode; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("how", choices=("mutated", "floods", "guided"))
    parser.add_argument("--seconds", type=int, default=600, help="duration of guided")
    parser.add_argument("--corpus", type=Path, help="directory in which guided keeps inputs between runs")
    parser.add_argument("--only", help="run this flood only")
    parser.add_argument("files", type=Path, nargs="*", help="captures")
    options = parser.parse_intermixed_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    options.corpus = options.corpus or Path(tempfile.mkdtemp(prefix="nettop-corpus"))
    options.corpus.mkdir(exist_ok=True)
    if options.how == "guided":
        guided(options.files, options.corpus, options.seconds)
    parts = FLOODS if options.how == "floods" else {"mutated": lambda: of_captures(options.files)}
    chosen = {title: exports() for title, exports in parts.items() if options.only in (None, title)}
    figures = (figure for title, exports in chosen.items() for figure in survives(title, exports))
    return judge([(options.how, figures)])


if __name__ == "__main__":
    sys.exit(main())
