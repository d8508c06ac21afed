# SPDX-License-Identifier: Apache-2.0
"""Enrichment of flows: lookups compared with the ipaddress module, files, reloading, interface names."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import maxminddb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nettop.collector.columns import ADDED_COLUMNS, ADDRESS, TEXT_MAX, Coded
from nettop.collector.enrichment import lookups
from nettop.collector.enrichment.enrich import Enrichment, FlowSide
from nettop.collector.enrichment.interfaces import InterfaceNames
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.enrichment.mmdb import _read_nodes
from nettop.collector.enrichment.networks import (
    Intervals,
    Ranges,
    SortedKeys,
    overlaid,
    parsed_network,
    parsed_networks,
    parsed_range,
)
from nettop.collector.enrichment.sources import NetworkFile, read_source
from nettop.errors import NettopError, UsageError
from nettop.snapshots.arrays import Array

from .mmdb import Network, Record, database

Address = IPv4Address | IPv6Address
UNKNOWN = "::"


def packed(address: Address | str) -> bytes:
    """Return an address as flows store it."""
    raw = ipaddress.ip_address(address).packed
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw


def column(addresses: Sequence[Address | str]) -> Array:
    """Return a column of addresses."""
    return np.frombuffer(b"".join(map(packed, addresses)), ADDRESS)


def intervals(networks: Sequence[Network]) -> Intervals:
    """Return the intervals of networks, indexed by position in the list."""
    return Intervals.of(parsed_networks(list(map(str, networks))), np.arange(len(networks)))


def most_specific(networks: Sequence[Network], address: Address) -> int:
    """Return the position of the first network with the longest matching prefix, −1 if there is none."""
    holding = [at for at, network in enumerate(networks) if address in network]
    return max(holding, key=lambda at: (networks[at].prefixlen, -at), default=-1)


BASES: list[Address] = [
    *map(IPv4Address, ("0.0.0.0", "10.0.0.0", "10.0.255.255", "10.1.0.0", "255.255.255.255")),
    *map(IPv6Address, ("::", "2001:db8::", "2001:db8:0:0:8000::", "2001:db8::ffff:0:0", "2001:db9::", "ffff::")),
    IPv6Address((1 << 128) - 1),
]  # fmt: skip


@st.composite
def networks_of(draw: st.DrawFn) -> Network:
    """Generate networks that are often nested, or address ranges."""
    base = draw(st.sampled_from(BASES))
    length = draw(st.integers(0, base.max_prefixlen))
    return ipaddress.ip_network((int(base), length) if base.version == 4 else (base, length), strict=False)


def addresses_around(networks: Sequence[Network]) -> list[Address]:
    """Return the bases, the first and last addresses of networks, and their neighbors, except ::ffff:a.b.c.d."""
    near: list[Address] = list(BASES)
    for network in networks:
        first, last = int(network.network_address), int(network.broadcast_address)
        of = IPv4Address if network.version == 4 else IPv6Address
        near += [of(at) for at in (first - 1, first, last, last + 1) if 0 <= at < 1 << network.max_prefixlen]
    return [at for at in near if at.version == 4 or not at.ipv4_mapped]


@given(st.lists(networks_of(), max_size=12))
@example([ipaddress.ip_network("::/0"), ipaddress.ip_network("0.0.0.0/0")])
@example(
    [ipaddress.ip_network("::/80"), ipaddress.ip_network("::8000:0:0/81"), ipaddress.ip_network("0.0.0.0/1")]
)
@example(
    [ipaddress.ip_network("255.255.255.255"), ipaddress.ip_network("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]
)
def test_the_most_specific_network(networks: list[Network]) -> None:
    """Lookups agree with the ipaddress module; the address that means unknown has no entry."""
    addresses = addresses_around(networks)
    expected = [-1 if at == IPv6Address(0) else most_specific(networks, at) for at in addresses]
    assert intervals(networks).look_up(column(addresses)).tolist() == expected


@given(
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), max_size=10),
    of_ipv6=st.booleans(),
)
def test_ranges_that_overlap(spans: list[list[int]], *, of_ipv6: bool) -> None:
    """Of partially overlapping ranges the smallest wins, of equals the first. Address halves carry."""
    base = (1 << 64) - 20 if of_ipv6 else (0xFFFF << 32) + 500
    table = Intervals.of(
        Ranges.of([(base + first, base + last) for first, last in spans]), np.arange(len(spans))
    )
    numbers = range(base - 1, base + 42)
    addresses = np.frombuffer(b"".join(number.to_bytes(16, "big") for number in numbers), ADDRESS)
    expected = [
        min(
            (at for at, (first, last) in enumerate(spans) if base + first <= number <= base + last),
            key=lambda at: (spans[at][1] - spans[at][0], at),
            default=-1,
        )
        for number in numbers
    ]
    assert table.look_up(addresses).tolist() == expected


@pytest.mark.parametrize("first_dtype", [np.uint32, np.uint64])
def test_sorted_keys_of_a_large_table(first_dtype: type[np.uint32 | np.uint64]) -> None:
    """Look up positions among 50,000 keys, most with the same leading bits."""
    random = np.random.default_rng(7)
    most = np.iinfo(first_dtype).max
    wide = random.integers(0, most, 10_000, first_dtype, endpoint=True)
    narrow = first_dtype(most // 3) + random.integers(0, 60_000, 40_000, first_dtype)
    firsts = np.concatenate([wide, narrow])
    pairs = sorted(set(zip(firsts.tolist(), random.integers(0, 3, len(firsts)).tolist(), strict=True)))
    keys = SortedKeys(
        (np.array([a for a, _ in pairs], first_dtype), np.array([b for _, b in pairs], np.uint64))
    )
    wanted = [
        (first + more, second) for first, second in pairs[::7] for more in (0, 1) if first + more <= most
    ]
    columns = np.array([a for a, _ in wanted], first_dtype), np.array([b for _, b in wanted], np.uint64)
    place = {pair: at for at, pair in enumerate(pairs)}
    assert keys.positions(columns).tolist() == [place.get(pair, -1) for pair in wanted]
    merged = sorted([(pair, 0) for pair in pairs] + [(pair, 1) for pair in wanted])
    count, expected = 0, {}
    for pair, is_wanted in merged:
        count += not is_wanted
        expected[pair] = count - 1
    assert keys.last_at_most(columns).tolist() == [expected[pair] for pair in wanted]
    assert SortedKeys((columns[0][:0],)).positions(columns[:1]).tolist() == [-1] * len(wanted)


@given(st.lists(st.lists(networks_of(), max_size=4), min_size=1, max_size=3))
def test_tables_laid_over_each_other(lists: list[list[Network]]) -> None:
    """Each table has one index per interval; the all-zero address is an interval of its own."""
    tables = [intervals(networks) for networks in lists]
    numbered, indices = overlaid(tables)
    addresses = column(
        [*addresses_around([network for networks in lists for network in networks]), UNKNOWN, "::1"]
    )
    at = numbered.look_up(addresses)
    assert [index[at].tolist() for index in indices] == [
        table.look_up(addresses).tolist() for table in tables
    ]
    assert at[-1] == at[-2] + 1
    same = numbered.with_indices(indices[0])
    assert same.look_up(addresses).tolist() == tables[0].look_up(addresses).tolist()
    assert len(same) == len(tables[0])


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' is not a network: host bits are set after the first 8", "write 10.0.0.0/8"),
        ("fe80::1/32", "'fe80::1/32' is not a network: host bits are set after the first 32", "write fe80::/32"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a network", "use a prefix length from 0 to 32"),
        ("::/129", "'::/129' is not a network", "use a prefix length from 0 to 128"),
        ("10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' is not a network", "use a prefix length from 0 to 32"),
        ("10.0.0.0/", "'10.0.0.0/' is not a network", "use a prefix length from 0 to 32"),
        ("10.0.0.0/²", "'10.0.0.0/²' is not a network", "use a prefix length from 0 to 32"),
        *(
            (text, f"{text.partition('/')[0]!r} is not an address", "write it like 192.0.2.1 or 2001:db8::1")
            for text in ("", "10.0.0/8", "010.0.0.0", "fe80::1%eth0", "host", "10.0.0.0\0", "10.0.0.0 /8", "1")
        ),
    ],
)  # fmt: skip
def test_invalid_networks(text: str, what: str, remedy: str) -> None:
    """The error states the cause and the correct form."""
    with pytest.raises(UsageError) as raised:
        parsed_network(text)
    assert (raised.value.what, raised.value.remedy) == (what, remedy)


@pytest.mark.parametrize(
    ("start", "end", "what"),
    [
        ("10.0.0.2", "10.0.0.1", "the start '10.0.0.2' is after the end '10.0.0.1'"),
        ("10.0.0.1", "2001:db8::", "'10.0.0.1' and '2001:db8::' are of different families"),
        ("::", "10.0.0.1", "'::' and '10.0.0.1' are of different families"),
    ],
)
def test_invalid_ranges(start: str, end: str, what: str) -> None:
    """The error states the cause."""
    with pytest.raises(UsageError) as raised:
        parsed_range(start, end)
    assert raised.value.what == what


# --- files ---------------------------------------------------------------------------------------------------------


def csv_file(folder: Path, text: str, name: str = "networks.csv") -> Path:
    """Write a CSV file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mmdb_file(
    folder: Path, networks: Mapping[str, object], name: str = "some.mmdb", version: int = 6
) -> Path:
    """Write a database of these networks."""
    path = folder / name
    path.write_bytes(
        database({ipaddress.ip_network(text): record for text, record in networks.items()}, version)
    )
    return path


def facts(source: NetworkFile, addresses: Sequence[str]) -> list[tuple[int, str, str]]:
    """Return the AS, country and name that a source has for each address."""
    added = Enrichment([source]).enrich(flows([(at, at) for at in addresses]))
    texts = (texts_of(added.texts[name]) for name in ("src_country", "src_network"))
    return list(zip(added.values["src_as"].tolist(), *texts, strict=True))


def test_a_table_of_networks(tmp_path: Path) -> None:
    """A less specific row fills empty cells; comments, empty lines and quotes are supported."""
    path = csv_file(
        tmp_path,
        "\ufeff# ours\n\nName, NETWORK ,asn,as_name,country,unused\n"
        'headquarters,10.0.0.0/8,64512,Example,de,1\r\n "lab, ""upstairs""",10.1.0.0/16,,,,2\n'
        "  # more\n,10.1.2.0/24,AS64513,,FR,\nsix,2001:db8::/32,as4200000000,,,\nhost,10.1.2.3,64512,Other,,\n",
    )
    source = read_source(path)
    assert source.as_names == {64512: "Example"}
    assert facts(source, ["10.0.0.1", "10.1.0.1", "10.1.2.1", "10.1.2.3", "2001:db8::1", "11.0.0.1", "2001:db9::"]) == [
        (64512, "DE", "headquarters"), (64512, "DE", 'lab, "upstairs"'), (64513, "FR", 'lab, "upstairs"'),
        (64512, "FR", "host"), (4200000000, "", "six"), (0, "", ""), (0, "", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("start,end,network_name,name", "10.0.0.5,10.0.0.7,net,other", (0, "", "net")),
        ("start_ip,end_ip,country", "10.0.0.5,10.0.0.7,us", (0, "US", "")),
        # IPinfo's `country` is a name if there is a `country_code`.
        ("network,country,country_code,asn", "10.0.0.6/31,Germany,DE,AS1", (1, "DE", "")),
        # GeoLite2's.
        (
            "network,autonomous_system_number,autonomous_system_organization",
            "10.0.0.4/30,64512,Org",
            (64512, "", ""),
        ),
    ],
)
def test_columns_of_tables(tmp_path: Path, header: str, row: str, expected: tuple[int, str, str]) -> None:
    """Ranges, and alternative column names."""
    source = read_source(csv_file(tmp_path, f"{header}\n{row}\n"))
    assert facts(source, ["10.0.0.7", "10.0.0.8"]) == [expected, (0, "", "")]


@pytest.mark.parametrize(
    ("header", "row", "as_name", "name"),
    [
        # GeoLite2, IPinfo and IPLocate.
        ("network,autonomous_system_number,autonomous_system_organization", "10.0.0.0/8,1,Org", "Org", ""),
        ("network,country_code,asn,as_name,as_domain", "10.0.0.0/8,DE,AS1,Org,x.org", "Org", ""),
        ("start_ip,end_ip,asn,name,domain", "10.0.0.0,10.0.0.9,AS1,Org,x.org", "Org", ""),
        ("network,asn,country_code,name,org,domain", "10.0.0.0/8,1,DE,ORG,Org,x.org", "ORG", ""),
        ("network,asn,name", "10.0.0.0/8,1,net", "", "net"),
        ("network,asn,as_name,name,domain", "10.0.0.0/8,1,Org,net,x.org", "Org", "net"),
        ("network,name,domain", "10.0.0.0/8,net,x.org", "", "net"),
    ],
)
def test_columns_of_names(tmp_path: Path, header: str, row: str, as_name: str, name: str) -> None:
    """The name of the AS, and the name of the network."""
    source = read_source(csv_file(tmp_path, f"{header}\n{row}\n"))
    assert source.as_names == ({1: as_name} if as_name else {})
    ((_, _, read),) = facts(source, ["10.0.0.1"])
    assert read == name


EXAMPLE = "start the file with network,asn,as_name,country,name; start,end may replace network"


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("", ":1: the header has no column network", EXAMPLE),
        ("a,b\n", ":1: the header has no column network", EXAMPLE),
        ("# x\n\nstart,name\n", ":3: the header has no column network", EXAMPLE),
        ("network,tenant\n", ":1: the header has none of the columns asn, country and name", EXAMPLE),
        ("network,asn\n10.0.0.0/8,1\n10.0.0.0/7,x\n", ":3: 'x' is not an AS number",
         "write it like 64512 or AS64512, up to 4294967295"),
        ("network,asn\n10.0.0.0/8,4294967296\n", ":2: '4294967296' is not an AS number",
         "write it like 64512 or AS64512, up to 4294967295"),
        ("network,country\n#\n10.0.0.0/8,Germany\n", ":3: 'Germany' is not a country code",
         "use two letters, such as DE (ISO 3166-1 alpha-2)"),
        ("network,country\n10.0.0.0/8,ßa\n", ":2: 'ßa' is not a country code",
         "use two letters, such as DE (ISO 3166-1 alpha-2)"),
        ("network,name\n10.0.0.0/8,a,b\n", ":2: the row has 3 cells, the header 2",
         'quote cells that contain a comma: "a, b"'),
        ('network,name\n10.0.0.0/8,"a" b\n', ":2: invalid CSV: ',' expected after '\"'",
         "double a quote within quotes"),
        ('network,name\n10.0.0.0/8,"a\n', ":2: invalid CSV: unexpected end of data",
         "double a quote within quotes"),
        ("network,name\n10.1.0.0/8,a\n", ":2: '10.1.0.0/8' is not a network: host bits are set after the first 8",
         "write 10.0.0.0/8"),
        ("network,name,name\n", ":1: the header has the column name twice", "remove one of the two"),
    ],
)  # fmt: skip
def test_invalid_csv_files(tmp_path: Path, text: str, what: str, remedy: str) -> None:
    """The error names the file, the line, the cause and the remedy."""
    path = csv_file(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        read_source(path)
    assert (raised.value.what, raised.value.remedy) == (f"{path}{what}", remedy)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, compressed, or not a database."""
    compressed, none = tmp_path / "networks.csv.gz", tmp_path / "some.mmdb"
    compressed.write_bytes(b"\x1f\x8b\x08")
    none.write_bytes(b"<html>")
    for path, what in (
        (tmp_path / "missing", f"cannot read {tmp_path}/missing: No such file or directory"),
        (tmp_path, f"cannot read {tmp_path}: Is a directory"),
        (compressed, f"{compressed} is compressed"),
        (none, f"{none} is not a MaxMind database, or incomplete"),
    ):
        with pytest.raises(UsageError) as raised:
            read_source(path)
        assert raised.value.what == what
        assert raised.value.remedy


def test_names_are_bounded_and_stay_text(tmp_path: Path) -> None:
    """Control characters and all scripts are kept, invalid UTF-8 is replaced, long names are cut."""
    path = tmp_path / "networks.csv"
    path.write_bytes(b"network,name,asn,as_name\n10.0.0.0/8,\x1b[31m\xff\xe2\x82\xac,1," + b"x" * 999 + b"\n")
    source = read_source(path)
    assert facts(source, ["10.0.0.1"]) == [(1, "", "\x1b[31m\ufffd€")]
    assert source.as_names == {1: "x" * TEXT_MAX}


GEOLITE_ASN = {"autonomous_system_number": 64512, "autonomous_system_organization": "Example"}


@pytest.mark.parametrize(
    ("record", "expected", "name"),
    [
        (GEOLITE_ASN, (64512, ""), "Example"),
        ({"country": {"iso_code": "DE", "names": {"en": "Germany"}}, "continent": {"code": "EU"}}, (0, "DE"), None),
        # DB-IP with ISP.
        ({"country": {"iso_code": "DE"}, "traits": GEOLITE_ASN}, (64512, "DE"), "Example"),
        # IPinfo Lite.
        ({"asn": "AS64512", "as_name": "Example", "as_domain": "x.org", "country": "Germany", "country_code": "DE"},
         (64512, "DE"), "Example"),
        ({"asn": "AS64512", "as_name": "", "as_domain": "example.org"}, (64512, ""), "example.org"),
        # Older IPinfo, and IPLocate.
        ({"asn": "as64512", "country": "DE", "country_name": "Germany"}, (64512, "DE"), None),
        ({"asn": 64512, "country_code": "de", "name": "EXAMPLE", "org": "Example"}, (64512, "DE"), "EXAMPLE"),
        ({"asn": "", "country_code": "DE"}, (0, "DE"), None),
        ({"asn": "64512x", "country": {"iso_code": 5}, "country_code": "DE"}, (0, "DE"), None),
        ({"asn": 1 << 31, "as_name": ["x"], "country_code": "D1"}, (1 << 31, ""), None),
    ],
)  # fmt: skip
def test_records_of_databases(
    tmp_path: Path, record: Record, expected: tuple[int, str], name: str | None
) -> None:
    """The fields of each provider."""
    source = read_source(mmdb_file(tmp_path, {"10.0.0.0/8": record, "2001:db8::/32": record}))
    assert facts(source, ["10.0.0.1", "2001:db8::1", "11.0.0.1"]) == [
        (*expected, ""),
        (*expected, ""),
        (0, "", ""),
    ]
    assert source.as_names == ({expected[0]: name} if name else {})


@given(
    st.lists(networks_of(), min_size=1, max_size=12), st.sampled_from([24, 28, 32]), st.sampled_from([4, 6])
)
def test_databases_match_their_own_reader(
    tmp_path_factory: pytest.TempPathFactory, networks: list[Network], record_bits: int, version: int
) -> None:
    """All record sizes and both versions, for disjoint networks."""
    apart: dict[Network, Record] = {}
    for number, network in enumerate(networks, 1):
        is_free = not any(network.overlaps(other) for other in apart if other.version == network.version)
        # In a database, IPv4 is part of IPv6.
        is_of_tree = network.version == 4 or (version == 6 and int(network.network_address) >> 32)
        if network.prefixlen and is_free and is_of_tree:
            apart[network] = {"asn": number, "country_code": f"A{chr(65 + number)}"}
    path = tmp_path_factory.mktemp("databases") / "some.mmdb"
    path.write_bytes(database(apart, version, record_bits))
    if not apart:
        with pytest.raises(UsageError, match="has no AS and no country for any network"):
            read_source(path)
        return
    # Below ::/96 the reader takes an address for IPv4.
    addresses = [
        at for at in addresses_around(list(apart)) if at.version == 4 or (version == 6 and int(at) >> 32)
    ]
    source = read_source(path)
    with maxminddb.open_database(path) as reader:
        records = [dict(record) if isinstance(record := reader.get(at), dict) else {} for at in addresses]
    assert facts(source, [str(at) for at in addresses]) == [
        (record.get("asn", 0), record.get("country_code", ""), "") for record in records
    ]


def test_networks_that_lead_to_ipv4(tmp_path: Path) -> None:
    """Aliased networks are read once, as in the package."""
    networks = {"10.0.0.0/8": GEOLITE_ASN, "2002::/16": None, "::ffff:0:0/96": None, "2003::/16": GEOLITE_ASN}
    path = mmdb_file(tmp_path, networks)
    with maxminddb.open_database(path) as reader:
        assert reader.get("2002:a00:1::") == GEOLITE_ASN
        assert sorted(str(network) for network, _ in reader) == ["10.0.0.0/8", "2003::/16"]
    source = read_source(path)
    assert [number for number, _, _ in facts(source, ["10.0.0.1", "2002:a00:1::", "2003::1"])] == [
        64512,
        0,
        64512,
    ]


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_part_of_a_database(tmp_path: Path, kept: float) -> None:
    """An interrupted download is rejected."""
    path = mmdb_file(
        tmp_path, {f"10.{number}.0.0/16": GEOLITE_ASN | {"x": "y" * number} for number in range(256)}
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UsageError) as raised:
        read_source(path)
    assert str(path) in raised.value.what


OUT_OF_THE_FILE, BACK_TO_THE_ROOT, BETWEEN_TREE_AND_DATA = b"\xff" * 6, bytes(6), b"\0\0\1\0\0\x22"


@pytest.mark.parametrize(
    ("number", "node", "why"),
    [
        (0, OUT_OF_THE_FILE, ""),
        (0, BETWEEN_TREE_AND_DATA, "the tree leads nowhere"),
        (0, BACK_TO_THE_ROOT, "the tree has a loop"),
        # One record leads to the node itself, the other to no network.
        (8, b"\0\0\x08\0\0\x20", "the tree leads nowhere"),
        (8, b"\0\0\x08\0\0\x08", "the tree has a loop"),
    ],
)
def test_a_damaged_tree(tmp_path: Path, number: int, node: bytes, why: str) -> None:
    """A tree that leads to no node and no record, or has a loop, is rejected before it grows."""
    content = database({ipaddress.ip_network("10.0.0.0/32"): GEOLITE_ASN}, version=4, record_bits=24)
    path = tmp_path / "some.mmdb"
    path.write_bytes(content[: number * 6] + node + content[number * 6 + 6 :])
    with pytest.raises(UsageError, match="is a corrupt MaxMind database") as raised:
        read_source(path)
    assert why in str(raised.value.__cause__)


def test_a_network_that_holds_all_ipv4_addresses(tmp_path: Path) -> None:
    """Above ::/96 a network is IPv6 only."""
    source = read_source(mmdb_file(tmp_path, {"::/90": GEOLITE_ASN}))
    assert [number for number, _, _ in facts(source, ["::5", "::40:0:0", "10.0.0.1"])] == [64512, 0, 0]


def test_a_node_of_56_bits() -> None:
    """The middle byte holds the upper bits of both numbers."""
    assert _read_nodes(bytes.fromhex("abcdef56123456"), 1, 28).tolist() == [[0x5ABCDEF, 0x6123456]]


def test_damaged_records(tmp_path: Path) -> None:
    """A name in invalid UTF-8 is rejected; a record that is not a map has no attributes."""
    path = mmdb_file(tmp_path, {"10.0.0.0/8": {"as_name": b"\xff", "asn": 1}})
    with pytest.raises(UsageError, match="is a corrupt MaxMind database"):
        read_source(path)
    source = read_source(mmdb_file(tmp_path, {"10.0.0.0/8": GEOLITE_ASN, "11.0.0.0/8": ["asn"]}))
    assert facts(source, ["10.0.0.1", "11.0.0.1"]) == [(64512, "", ""), (0, "", "")]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV file can be read without it, a database cannot."""
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    assert len(read_source(csv_file(tmp_path, "network,asn\n10.0.0.0/8,1\n")).as_numbers) == 1
    path = mmdb_file(tmp_path, {"10.0.0.0/8": GEOLITE_ASN})
    with pytest.raises(NettopError) as raised:
        read_source(path)
    assert raised.value.what == f"{path} is a MaxMind database; reading it requires the package maxminddb"
    assert raised.value.remedy == "install it: pip install 'nettop[flows]'"


# --- flows ---------------------------------------------------------------------------------------------------------


def flows(pairs: Sequence[tuple[str, str]], src_as: int = 0, dst_as: int = 0) -> dict[str, Array]:
    """Return flows between these addresses, with these AS numbers reported by an exporter."""
    return {
        "src": column([src for src, _ in pairs]),
        "dst": column([dst for _, dst in pairs]),
        "src_as": np.full(len(pairs), src_as, np.uint32),
        "dst_as": np.full(len(pairs), dst_as, np.uint32),
    }


def texts_of(coded: Coded) -> list[str]:
    """Return the texts of rows."""
    return [coded.words[code] for code in coded.codes.tolist()]


def tables(folder: Path, *texts: str) -> list[NetworkFile]:
    """Return sources from CSV files with these contents."""
    return [read_source(csv_file(folder, text, f"{number}.csv")) for number, text in enumerate(texts)]


def test_columns_of_flows(tmp_path: Path) -> None:
    """AS, country and name of both sides; an AS reported by the exporter is kept."""
    sources = tables(
        tmp_path,
        "network,asn,as_name,country,name\n10.0.0.0/8,64512,Ten,DE,ten\n2001:db8::/32,64513,Eight,FR,eight\n",
    )
    enrichment = Enrichment(sources, parsed_networks(["10.0.0.0/8"]))
    pairs = [("10.0.0.1", "2001:db8::1"), ("192.0.2.1", "10.0.0.1"), (UNKNOWN, "10.0.0.1")]
    added = enrichment.enrich(flows(pairs, dst_as=0))
    assert {name: values.tolist() for name, values in added.values.items()} == {
        "src_as": [64512, 0, 0], "dst_as": [64513, 64512, 64512],
        "side": [FlowSide.OUT, FlowSide.IN, FlowSide.UNKNOWN],
    }  # fmt: skip
    assert {name: texts_of(coded) for name, coded in added.texts.items()} == {
        "src_country": ["DE", "", ""],
        "dst_country": ["FR", "DE", "DE"],
        "src_network": ["ten", "", ""],
        "dst_network": ["eight", "ten", "ten"],
    }
    reported = enrichment.enrich(flows(pairs, src_as=7, dst_as=9)).values
    assert (reported["src_as"].tolist(), reported["dst_as"].tolist()) == ([7] * 3, [9] * 3)
    assert enrichment.as_names() == {64512: "Ten", 64513: "Eight"}
    declared = {added_column.name: added_column.dtype for added_column in ADDED_COLUMNS}
    computed = {name: values.dtype for name, values in added.values.items()}
    numbers = dict.fromkeys(("in_if", "out_if", "domain"), np.ones(1, np.uint32))
    unnamed = InterfaceNames({}).names_of(
        {"exporter": np.zeros(1, ADDRESS), **numbers}, np.ones(1, np.uint16)
    )
    computed |= {name: coded.codes.dtype for name, coded in (added.texts | unnamed).items()}
    assert declared == {name: dtype.str[1:] for name, dtype in computed.items() if name in declared}
    assert {computed["src_as"].str, computed["dst_as"].str} == {"<u4"}


def test_no_flows_and_no_sources() -> None:
    """Columns have the right types even if nothing is known."""
    for enrichment in (Enrichment(), Enrichment([], parsed_networks(["10.0.0.0/8"]))):
        for pairs in ([], [("10.0.0.1", "::1")]):
            added = enrichment.enrich(flows(pairs))
            assert {name: values.dtype.str[1:] for name, values in added.values.items()} == {
                "side": "i1", "src_as": "u4", "dst_as": "u4",
            }  # fmt: skip
            assert [texts_of(coded) for coded in added.texts.values()] == [[""] * len(pairs)] * 4


SIDES = {
    ("10.0.0.1", "192.0.2.1"): FlowSide.OUT,
    ("192.0.2.1", "2001:db8::1"): FlowSide.IN,
    ("10.0.0.1", "2001:db8::1"): FlowSide.INTERNAL,
    ("192.0.2.1", "2001:db9::1"): FlowSide.THROUGH,
    ("10.0.0.1", UNKNOWN): FlowSide.UNKNOWN,
    (UNKNOWN, "192.0.2.1"): FlowSide.UNKNOWN,
    ("0.0.0.0", "10.0.0.1"): FlowSide.IN,
    ("::1", "10.0.0.1"): FlowSide.IN,
}


def test_sides_of_flows() -> None:
    """Relative to own networks, which may be all that is known; unknown without any."""
    own = parsed_networks(["10.0.0.0/8", "2001:db8::/32"])
    pairs = flows(list(SIDES))
    assert Enrichment([], own).enrich(pairs).values["side"].tolist() == list(SIDES.values())
    assert not Enrichment().enrich(pairs).values["side"].any()
    every = Enrichment([], parsed_networks(["0.0.0.0/0", "::/0"])).enrich(pairs).values["side"].tolist()
    assert every == [FlowSide.UNKNOWN if UNKNOWN in pair else FlowSide.INTERNAL for pair in SIDES]


def test_several_sources(tmp_path: Path) -> None:
    """For AS and country the first source that knows them wins; for names, the most specific network."""
    first = "network,asn,as_name,country,name\n10.0.0.0/8,1,first,,wide\n11.0.0.0/8,,,DE,same\n"
    second = (
        "network,asn,as_name,country,name\n10.1.0.0/16,2,second,FR,narrow\n"
        "11.0.0.0/8,3,third,FR,other\n12.0.0.0/8,1,last,,\n"
    )
    enrichment = Enrichment(tables(tmp_path, first, second))
    added = enrichment.enrich(flows([("10.0.0.1", "10.1.0.1"), ("11.0.0.1", "12.0.0.1")]))
    assert {name: values.tolist() for name, values in added.values.items() if name != "side"} == {
        "src_as": [1, 3],
        "dst_as": [1, 1],
    }
    assert {name: texts_of(coded) for name, coded in added.texts.items()} == {
        "src_country": ["", "DE"],
        "dst_country": ["FR", ""],
        "src_network": ["wide", "same"],
        "dst_network": ["narrow", ""],
    }
    assert enrichment.as_names() == {1: "first", 2: "second", 3: "third"}


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.tuples(networks_of(), st.sampled_from(["", "a", "b", "c"])), max_size=6), max_size=3)
)
def test_names_of_several_sources(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[tuple[Network, str]]]
) -> None:
    """The name comes from the most specific network that has one, in any source."""
    rows = [(network, name) for list_ in lists for network, name in list_ if name]
    folder = tmp_path_factory.mktemp("tables")
    texts = [
        "".join(["network,name\n", *(f"{network},{name}\n" for network, name in list_)]) for list_ in lists
    ]
    networks = [network for network, _ in rows]
    addresses = [str(at) for at in addresses_around(networks) if at != IPv6Address(0)]
    added = Enrichment(tables(folder, *texts)).enrich(flows([(at, at) for at in addresses]))
    expected = [most_specific(networks, ipaddress.ip_address(at)) for at in addresses]
    assert texts_of(added.texts["src_network"]) == [rows[at][1] if at >= 0 else "" for at in expected]


# --- reloading -----------------------------------------------------------------------------------------------------


def reloading(*paths: Path) -> LookupFiles:
    """Return lookups that follow these files."""
    return LookupFiles(paths, [], None)


def as_of(enrichment: Enrichment, *addresses: str) -> list[int]:
    """Return the AS of addresses."""
    numbers: list[int] = enrichment.enrich(flows([(at, at) for at in addresses])).values["src_as"].tolist()
    return numbers


def test_replaced_and_overwritten_files(tmp_path: Path) -> None:
    """Both are noticed, whatever the file's size and time; flows see the old contents until reloading is complete."""
    path, other = (
        csv_file(tmp_path, "network,asn\n10.0.0.0/8,1\n"),
        csv_file(tmp_path, "network,asn\n11.0.0.0/8,7\n", "o"),
    )
    files = reloading(path, other)
    before = files.current().enrichment
    assert files.check() == []
    assert files.current().enrichment is before

    new = csv_file(tmp_path, "network,asn\n10.0.0.0/8,2\n", "new")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(new, ns=times)
    new.replace(path)
    assert files.check() == []
    assert as_of(files.current().enrichment, "10.0.0.1", "11.0.0.1") == [2, 7]
    assert as_of(before, "10.0.0.1", "11.0.0.1") == [1, 7]

    inode = path.stat().st_ino
    path.write_text("network,asn\n10.0.0.0/8,3\n", encoding="utf-8")
    os.utime(path, ns=(times[0], times[1] + 1))
    assert path.stat().st_ino == inode
    assert files.check() == []
    assert as_of(files.current().enrichment, "10.0.0.1") == [3]
    assert files.check() == []


@pytest.mark.parametrize(("rereads", "after"), [(True, 2), (False, 1)])
def test_files_that_may_be_read_only_once(tmp_path: Path, *, rereads: bool, after: int) -> None:
    """Changes are ignored if another user does the reading than the one who named the files."""
    path = csv_file(tmp_path, "network,asn\n10.0.0.0/8,1\n")
    files = LookupFiles([path], [], None, rereads=rereads)
    csv_file(tmp_path, "network,asn\n10.0.0.0/8,2\n11.0.0.0/8,2\n")
    assert files.check() == []
    assert as_of(files.current().enrichment, "10.0.0.1") == [after]


def test_a_file_becomes_invalid(tmp_path: Path) -> None:
    """The old contents stay in use, with one warning per change."""
    path, other = (
        csv_file(tmp_path, "network,asn\n10.0.0.0/8,1\n"),
        csv_file(tmp_path, "network,asn\n11.0.0.0/8,7\n", "o"),
    )
    files = reloading(path, other)
    path.write_text("network,asn\n10.0.0.0/8,1\n12.0.0.0,broken\n", encoding="utf-8")
    other.write_text("network,asn\n11.0.0.0/8,1234\n", encoding="utf-8")
    warning = (
        f"{path}:3: 'broken' is not an AS number; its previous contents stay in use "
        "(write it like 64512 or AS64512, up to 4294967295)"
    )
    assert files.check() == [warning]
    assert files.check() == []
    assert as_of(files.current().enrichment, "10.0.0.1", "11.0.0.1", "12.0.0.0") == [1, 1234, 0]

    path.unlink()
    assert [warning.partition(";")[0] for warning in files.check()] == [
        f"cannot read {path}: No such file or directory"
    ]
    assert files.check() == []
    path.write_text("network,asn\n12.0.0.0,5\n", encoding="utf-8")
    assert files.check() == []
    assert as_of(files.current().enrichment, "10.0.0.1", "11.0.0.1", "12.0.0.0") == [0, 1234, 5]


def test_a_change_while_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use new contents once complete; notice a change during the read at the next check."""
    path = csv_file(tmp_path, "network,asn\n10.0.0.0/8,1\n")
    files = reloading(path)
    in_use = []

    def read(path: Path) -> NetworkFile:
        source = read_source(path)
        in_use.extend(as_of(files.current().enrichment, "10.0.0.1"))
        csv_file(tmp_path, "network,asn\n10.0.0.0/8,333\n")
        return source

    csv_file(tmp_path, "network,asn\n10.0.0.0/8,22\n")
    monkeypatch.setattr(lookups, "read_source", read)
    for expected in (22, 333):
        assert files.check() == []
        assert as_of(files.current().enrichment, "10.0.0.1") == [expected]
    assert in_use == [1, 22]


def test_a_file_is_invalid_initially(tmp_path: Path) -> None:
    """Without earlier contents, it is an error."""
    with pytest.raises(UsageError, match="cannot read"):
        reloading(tmp_path / "missing")


# --- interfaces ----------------------------------------------------------------------------------------------------

ROUTER, SWITCH = "10.0.0.1", "2001:db8::1"
INTERFACES = """exporter,if_index,name,description,speed
10.0.0.1,1,ge-0/0/0,"uplink, Berlin",10G
# a comment
10.0.0.1,4294967295,lo,,
2001:db8::1,1,eth0,,2500 Mbit/s
2001:db8::1,2,,only described,100000
"""


def looked_up(
    names: InterfaceNames, *wanted: tuple[str, int], port: int = 1000, domain: int = 0
) -> list[str]:
    """Return the names of interfaces."""
    exporters, indices = column([exporter for exporter, _ in wanted]), [index for _, index in wanted]
    ports, domains = np.full(len(wanted), port, np.uint16), np.full(len(wanted), domain, np.uint32)
    return texts_of(names.look_up(exporters, ports, domains, np.array(indices, np.uint32)))


def test_a_table_of_interfaces(tmp_path: Path) -> None:
    """By exporter and index; unknown names are empty, and other columns are ignored."""
    names = InterfaceNames.from_csv(csv_file(tmp_path, INTERFACES))
    wanted = [
        (ROUTER, 1),
        (ROUTER, 2),
        (SWITCH, 1),
        (SWITCH, 2),
        (ROUTER, 4294967295),
        ("10.0.0.2", 1),
        (ROUTER, 1),
    ]
    assert looked_up(names, *wanted) == ["ge-0/0/0", "", "eth0", "", "lo", "", "ge-0/0/0"]
    assert looked_up(names) == []
    assert looked_up(InterfaceNames({}), (ROUTER, 1)) == [""]
    short = InterfaceNames.from_csv(csv_file(tmp_path, "name,if_index,exporter\nx,7,10.0.0.1\n"))
    assert looked_up(short, (ROUTER, 7)) == ["x"]


def test_names_that_exporters_report(tmp_path: Path) -> None:
    """The CSV file wins; the exporter fills in what it lacks."""
    table = InterfaceNames.from_csv(csv_file(tmp_path, INTERFACES))
    names = table.with_reported(
        {
            (packed(ROUTER), 7, 0, 1): "reported",
            (packed(ROUTER), 8, 0, 1): "of another",
            (packed(SWITCH), 7, 0, 2): "eth1",
            (packed(SWITCH), 7, 0, 3): "eth2" * 99,
        }
    )
    wanted = (ROUTER, 1), (SWITCH, 1), (SWITCH, 2), (SWITCH, 3), (ROUTER, 4294967295)
    assert looked_up(names, *wanted) == ["ge-0/0/0", "eth0", "eth1", ("eth2" * 99)[:TEXT_MAX], "lo"]
    assert looked_up(table, (SWITCH, 2)) == [""]


def test_names_of_several_exporters_behind_one_address() -> None:
    """By port and domain where they differ, and unknown for a third; where they agree, for all."""
    names = InterfaceNames({}).with_reported(
        {
            (packed(ROUTER), 41001, 0, 5): "wan-A",
            (packed(ROUTER), 41002, 0, 5): "wan-B",
            (packed(ROUTER), 41002, 9, 5): "card 9",
            (packed(ROUTER), 41001, 0, 6): "lan",
            (packed(ROUTER), 41002, 0, 6): "lan",
        }
    )
    wanted = (ROUTER, 5), (ROUTER, 6), (SWITCH, 5)
    assert looked_up(names, *wanted, port=41001) == ["wan-A", "lan", ""]
    assert looked_up(names, *wanted, port=41002) == ["wan-B", "lan", ""]
    assert looked_up(names, *wanted, port=41002, domain=9) == ["card 9", "lan", ""]
    assert looked_up(names, *wanted, port=41003) == ["", "lan", ""]


@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from([packed(at) for at in (ROUTER, SWITCH, "10.0.0.2", "::")]), st.integers(0, 9)
        ),
        st.sampled_from(["a", "b", "c"]),
    )
)
def test_interfaces_are_those_of_the_mapping(interfaces: dict[tuple[bytes, int], str]) -> None:
    """Every pair of exporter and index is found."""
    wanted = [(at, index) for at in (ROUTER, SWITCH, "10.0.0.2", "::", "::1") for index in range(11)]
    expected = [interfaces.get((packed(at), index), "") for at, index in wanted]
    assert looked_up(InterfaceNames(interfaces), *wanted) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("exporter,name\n", ":1: the header lacks the column exporter, if_index or name"),
        ("exporter,if_index,name\nrouter,1,x\n", ":2: 'router' is not an address"),
        ("exporter,if_index,name\n10.0.0.1,,x\n", ":2: '' is not an interface index"),
        ("exporter,if_index,name\n10.0.0.1,4294967296,x\n", ":2: '4294967296' is not an interface index"),
        ("exporter,if_index,name\n10.0.0.1,-1,x\n", ":2: '-1' is not an interface index"),
        (
            "exporter,if_index,name\n10.0.0.1,1,x\n10.0.0.1,1,x\n10.0.0.1,1,y\n",
            ":4: interface 1 of 10.0.0.1 is listed twice, with different names",
        ),
    ],
)
def test_invalid_interface_files(tmp_path: Path, text: str, what: str) -> None:
    """The error names the file, the line, the cause and the remedy."""
    path = csv_file(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        InterfaceNames.from_csv(path)
    assert raised.value.what == f"{path}{what}"
    assert raised.value.remedy
