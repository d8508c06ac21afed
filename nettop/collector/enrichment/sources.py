# SPDX-License-Identifier: Apache-2.0
"""Files with information about addresses: MaxMind databases (.mmdb) and CSV files.

The content of a file tells whether it provides AS, country or name. The field names are those of GeoLite2, DB-IP,
IPinfo, IPLocate and ip-location-db.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.collector.columns import TEXT_MAX, Coded
from nettop.collector.enrichment.mmdb import is_mmdb, read_mmdb
from nettop.collector.enrichment.networks import Ranges, parsed_network, parsed_range
from nettop.collector.enrichment.tables import CsvTable, read_lookup_file
from nettop.errors import UsageError
from nettop.snapshots.arrays import Array, Index

_GZIP_MARK = b"\x1f\x8b"
_AS_MAX = 0xFFFFFFFF

_AS_NUMBER = ("autonomous_system_number", "asn")
_AS_NAME = ("autonomous_system_organization", "as_name", "name", "as_domain")
"""Field names for the AS and its name in databases, best first."""
_COUNTRY = ("country_code", "country")
_CSV_STARTS, _CSV_ENDS = ("start", "start_ip", "ip_range_start"), ("end", "end_ip", "ip_range_end")
_CSV_AS_NAME = ("as_name", "autonomous_system_organization")
_CSV_NAME = ("network_name", "name")
_AS_DOMAIN = "domain"
"""A column of IPLocate and IPinfo, whose `name` is that of the AS."""
_CSV_EXAMPLE = "start the file with network,asn,as_name,country,name; start,end may replace network"


class NetworkFile(NamedTuple):
    """Contents of a file: networks, and each one's AS (u4), country (S2) and name (n,); zero or an empty text means
    unknown.

    Within a file, the most specific network with a value wins. Between files, the first one wins for AS and country;
    for names, the most specific network does.
    """

    ranges: Ranges
    as_numbers: Array
    countries: Array
    names: Coded
    as_names: Mapping[int, str]


class _Facts(NamedTuple):
    """Attributes of a network; 0 and empty texts mean unknown."""

    as_number: int
    as_name: str
    country: str


def read_source(path: Path) -> NetworkFile:
    """Read a whole file. Raise UsageError if it cannot be read, NettopError if a required package is missing."""
    content = read_lookup_file(path)
    if content.startswith(_GZIP_MARK):
        raise UsageError(f"{path} is compressed", "decompress it, for example with gunzip")
    if is_mmdb(content):
        return _mmdb_source(path, content)
    if path.suffix == ".mmdb":
        raise UsageError(f"{path} is not a MaxMind database, or incomplete", "download it again")
    return _csv_source(path, content)


def _csv_source(path: Path, content: bytes) -> NetworkFile:
    table = CsvTable(path, content)
    bounds_of = _bounds_reader(table)
    as_number, as_name = table.column(*_AS_NUMBER), table.column(*_CSV_AS_NAME)
    country, name = table.column(*_COUNTRY), table.column(*_CSV_NAME)
    if as_number is not None and as_name is None and table.column(_AS_DOMAIN) is not None:
        as_name, name = name, None
    if as_number is None and country is None and name is None:
        raise table.error("the header has none of the columns asn, country and name", _CSV_EXAMPLE)
    bounds, facts, names = [], [], []
    for row in table:
        try:
            bounds.append(bounds_of(row))
            facts.append(
                _Facts(
                    0 if as_number is None else _parsed_as(row[as_number]),
                    "" if as_name is None else row[as_name],
                    "" if country is None else _parsed_country(row[country]),
                )
            )
        except UsageError as error:
            raise table.error(error.what, error.remedy) from None
        names.append("" if name is None else row[name])
    ranges = Ranges.of(bounds)
    return _source(ranges, np.arange(len(facts)), facts, Coded.of(names))


def _mmdb_source(path: Path, content: bytes) -> NetworkFile:
    ranges, fact_of, records = read_mmdb(path, content)
    facts = [_facts(record) for record in records]
    if not any(fact.as_number or fact.country for fact in facts):
        what = f"{path} has no AS and no country for any network"
        raise UsageError(
            what, f"recognized fields are {', '.join((*_AS_NUMBER, *_COUNTRY, 'country.iso_code'))}"
        )
    no_names = Coded(np.zeros(len(ranges), np.uint32), ("",))
    return _source(ranges, fact_of, facts, no_names)


def _source(ranges: Ranges, fact_of: Index, facts: Sequence[_Facts], names: Coded) -> NetworkFile:
    """Create a source from ranges, with the index of each one's facts and its name (n,)."""
    named = {fact.as_number: fact.as_name[:TEXT_MAX] for fact in reversed(facts) if fact.as_name}
    return NetworkFile(
        ranges,
        np.array([fact.as_number for fact in facts], np.uint32)[fact_of],
        np.array([fact.country for fact in facts], "S2")[fact_of],
        names,
        {number: name for number, name in named.items() if number},
    )


def _bounds_reader(table: CsvTable) -> Callable[[list[str]], tuple[int, int]]:
    network, start, end = table.column("network"), table.column(*_CSV_STARTS), table.column(*_CSV_ENDS)
    if network is not None:
        return lambda row: parsed_network(row[network])
    if start is not None and end is not None:
        return lambda row: parsed_range(row[start], row[end])
    raise table.error("the header has no column network", _CSV_EXAMPLE)


def _parsed_as(text: str) -> int:
    number = _as_number(text)
    if number is None and text:
        raise UsageError(f"{text!r} is not an AS number", f"write it like 64512 or AS64512, up to {_AS_MAX}")
    return number or 0


def _parsed_country(text: str) -> str:
    if text and not _is_country(text):
        raise UsageError(
            f"{text!r} is not a country code", "use two letters, such as DE (ISO 3166-1 alpha-2)"
        )
    return text.upper()


def _facts(record: object) -> _Facts:
    """Extract the attributes from a database record. Some have the AS among `traits`."""
    if not isinstance(record, dict):
        return _Facts(0, "", "")
    traits, country = record.get("traits"), record.get("country")
    of_as = traits if isinstance(traits, dict) else record
    countries = (
        country.get("iso_code") if isinstance(country, dict) else country,
        record.get("country_code"),
    )
    return _Facts(
        next(filter(None, (_as_number(of_as.get(name)) for name in _AS_NUMBER)), 0),
        next((name for name in map(of_as.get, _AS_NAME) if name and isinstance(name, str)), ""),
        next((code.upper() for code in countries if isinstance(code, str) and _is_country(code)), ""),
    )


def _as_number(value: object) -> int | None:
    """Return an AS number, also if written like AS64512; None for anything else."""
    if isinstance(value, str):
        digits = value[2:] if value[:2].upper() == "AS" else value
        # Eleven digits are always too large.
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else None
    return value if isinstance(value, int) and 0 <= value <= _AS_MAX else None


def _is_country(text: str) -> bool:
    return len(text) == 2 and text.isascii() and text.isalpha()
