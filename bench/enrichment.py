# SPDX-License-Identifier: Apache-2.0
"""Compare the cost of address lookups with the package maxminddb: `.venv/bin/python bench/enrichment.py [--quick]`.

maxminddb looks up distinct addresses one by one, by its C extension, in the same database; the answers must be equal.
The large table resembles that of the whole Internet: most networks are a /24, and many are nested. The exit code is 1
if a budget is missed.
"""

import ipaddress
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import maxminddb
import numpy as np
from measure import QUICK, Figure, arguments, at_least, judge, side_by_side

from nettop.flows.enrichment.enrich import Enrichment
from nettop.flows.enrichment.networks import Intervals, Ranges, addresses_of, parsed_networks
from nettop.flows.enrichment.sources import Source, read_source
from nettop.query.address import address_text
from nettop.snapshots.arrays import Array
from tests.unit.mmdb import database

ROWS, DISTINCT = 100_000, 10_000
"""Addresses in a batch of flows, and the number of distinct ones in a typical batch."""
IPV4_LENGTHS = (24, 24, 24, 24, 24, 24, 24, 23, 22, 22, 21, 20, 19, 16)
IPV6_LENGTHS = (48, 48, 48, 48, 44, 40, 36, 32, 32)
AS_COUNT = 80_000
MAPPED = np.uint64(0xFFFF << 32)
IPV6_SHARE = 0.17

BUILD_S = 5
BYTES_PER_PREFIX = 24
TIMES_AS_FAST = 4


@dataclass(frozen=True)
class Scale:
    """The size of a run."""

    prefixes: int
    database: int
    runs: int


def random_networks(random: np.random.Generator, count: int) -> Ranges:
    """Return networks of both families: IPv4 in 40,000 blocks, IPv6 with a /32 for every four networks."""
    ipv6_count = int(count * IPV6_SHARE)
    ipv4_count = count - ipv6_count
    blocks = random.choice(np.arange(0x0100, 0xDF00, dtype=np.uint64), 40_000) << np.uint64(16)
    ipv4 = random.choice(blocks, ipv4_count) | random.integers(0, 1 << 16, ipv4_count, np.uint64)
    ipv4_rest = rests(32 - random.choice(IPV4_LENGTHS, ipv4_count))
    allocated = random.integers(0x2001_0000, 0x2A10_0000, ipv6_count // 4 + 1, np.uint64) << np.uint64(32)
    ipv6 = random.choice(allocated, ipv6_count) | random.integers(0, 1 << 32, ipv6_count, np.uint64)
    ipv6_rest = rests(64 - random.choice(IPV6_LENGTHS, ipv6_count))
    none4, none6 = np.zeros(ipv4_count, np.uint64), np.zeros(ipv6_count, np.uint64)
    firsts = addresses_of(np.append(none4, ipv6 & ~ipv6_rest), np.append(MAPPED | ipv4 & ~ipv4_rest, none6))
    lasts = addresses_of(np.append(none4, ipv6 | ipv6_rest), np.append(MAPPED | ipv4 | ipv4_rest, ~none6))
    return Ranges(firsts, lasts)


def rests(bits: Array) -> Array:
    """Return masks of this many low bits."""
    return (np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1)


def random_addresses(random: np.random.Generator, networks: Ranges, distinct: int) -> Array:
    """Return ROWS addresses in networks of a table, `distinct` of them distinct."""
    at = random.integers(0, len(networks), distinct)
    return random.choice(networks.firsts[at], ROWS) if distinct < ROWS else networks.firsts[at]


def large_table(random: np.random.Generator, scale: Scale) -> list[Figure]:
    """Measure building the intervals of many networks, and lookups in them."""
    networks = random_networks(random, scale.prefixes)
    numbers = random.integers(0, scale.prefixes, scale.prefixes).astype(np.int32)
    table = Intervals.of(networks, numbers)
    (seconds,) = side_by_side(scale.runs, lambda: Intervals.of(networks, numbers))
    figures = [
        Figure(f"building the table of {scale.prefixes:,} networks", seconds, "s", BUILD_S),
        Figure("memory per network", table.nbytes / scale.prefixes, "B", BYTES_PER_PREFIX),
    ]
    for distinct in (DISTINCT, ROWS):
        addresses = random_addresses(random, networks, distinct)
        (seconds,) = side_by_side(10 * scale.runs, partial(table.look_up, addresses))
        what = f"lookups of {ROWS:,} addresses, {distinct:,} distinct"
        figures.append(Figure(what, ROWS / seconds / 1e6, "M/s"))
    return figures


def compare_with_package(random: np.random.Generator, scale: Scale) -> list[Figure]:
    """Measure how fast nettop and the package read a database and look up addresses in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "as.mmdb"
        networks = written_database(random, path, scale.database)
        with maxminddb.open_database(path) as reader:
            (ours, theirs) = side_by_side(
                scale.runs, lambda: read_source(path), lambda: sum(1 for _ in reader)
            )
            figures = [
                Figure(f"reading a database of {len(networks):,} networks", ours, "s"),
                Figure("iterating over its networks by the C extension", theirs, "s"),
            ]
            source = read_source(path)
            for distinct in (DISTINCT, ROWS):
                figures += look_ups(
                    random, scale, source, reader, random_addresses(random, networks, distinct)
                )
    return figures


def written_database(random: np.random.Generator, path: Path, count: int) -> Ranges:
    """Write a database of about `count` /24 networks, each with an AS; return the networks."""
    blocks = np.unique(random.integers(0x010000, 0xDF0000, count)) << 8
    as_numbers = random.integers(1, AS_COUNT, len(blocks))
    path.write_bytes(
        database(
            {
                ipaddress.ip_network((block, 24)): {"asn": number, "as_name": f"Network of AS {number}"}
                for block, number in zip(blocks.tolist(), as_numbers.tolist(), strict=True)
            }
        )
    )
    firsts = MAPPED | blocks.astype(np.uint64)
    none = np.zeros(len(blocks), np.uint64)
    return Ranges(addresses_of(none, firsts), addresses_of(none, firsts | np.uint64(0xFF)))


def look_ups(
    random: np.random.Generator, scale: Scale, source: Source, reader: maxminddb.Reader, addresses: Array
) -> list[Figure]:
    """Look up the AS of addresses with nettop and the package, and all columns of flows between them with nettop."""
    enrichment = Enrichment([source], parsed_networks(["10.0.0.0/8"]))
    nothing = np.zeros(len(addresses), np.uint32)
    flows = {"src": addresses, "dst": random.permutation(addresses), "src_as": nothing, "dst_as": nothing}
    known = source.as_numbers
    ours, theirs, columns = side_by_side(
        5 * scale.runs,
        lambda: known.values[known.intervals.look_up(addresses)],
        lambda: by_the_package(reader, addresses),
        lambda: enrichment.enrich(flows),
    )
    if (enrichment.enrich(flows).values["src_as"] != by_the_package(reader, addresses)).any():
        raise SystemExit("nettop and maxminddb differ")
    what = f"{len(addresses):,} addresses, {len(np.unique(addresses)):,} distinct"
    return [
        Figure(f"{what}: nettop", ours * 1e3, "ms"),
        Figure("the same by maxminddb, distinct addresses only", theirs * 1e3, "ms"),
        at_least("maxminddb ÷ nettop", theirs / ours, "×", TIMES_AS_FAST),
        Figure(f"all columns of {len(addresses):,} flows, both sides", columns * 1e3, "ms"),
    ]


def by_the_package(reader: maxminddb.Reader, addresses: Array) -> Array:
    """Look up the AS of addresses with the package; each address has one."""
    distinct, places = np.unique(addresses, return_inverse=True)
    numbers = []
    for raw in distinct.tolist():
        record = reader.get(address_text(raw))
        assert isinstance(record, dict)
        numbers.append(record["asn"])
    return np.array(numbers)[places]


def main() -> int:
    """Run both parts; return 1 if a budget is missed."""
    quick = arguments(__doc__, quick=QUICK).quick
    scale = Scale(50_000, 5_000, 1) if quick else Scale(1_000_000, 200_000, 3)
    random = np.random.default_rng(1)
    parts = {"A large table": large_table, "Compared with maxminddb": compare_with_package}
    return judge((title, part(random, scale)) for title, part in parts.items())


if __name__ == "__main__":
    sys.exit(main())
