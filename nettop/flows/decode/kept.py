# SPDX-License-Identifier: Apache-2.0
"""Exporters' declarations, saved to disk so that a restarted collector need not wait for the next ones.

The file consists of JSON lines: a header with the checksum of the rest, one line per observation domain, and one for
the interfaces of each exporter.
"""

from __future__ import annotations

import json
import os
import reprlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nettop.errors import SourceFailed
from nettop.flows.columns import ADDRESS, TIME_MAX_MS
from nettop.flows.decode.decoder import Decoder
from nettop.flows.decode.domains import Domain, DomainKey
from nettop.flows.decode.options import RATE_MAX, InterfaceName, InterfaceNames, Sampling
from nettop.flows.decode.templates import (
    FIRST_DATA_SET,
    IPFIX,
    NETFLOW_9,
    SCOPE,
    TEMPLATE_FIELDS_MAX,
    Template,
    TemplateField,
)

FORMAT, VERSION = "nettop flow templates", 1
FILE_BYTES_MAX = 128 << 20
"""Maximum size of a file that is read. A decoder's state takes less."""
_ADDRESS_BYTES = np.dtype(ADDRESS).itemsize
_NO_SCOPES = -1
"""Number of scopes saved for an options template that has none."""
_U16, _U32, _U64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class _InvalidFile(Exception):
    """A file that is not in the format of `save`."""


def save(path: Path, decoder: Decoder) -> bool:
    """Save the decoder's state if it changed since it was last saved or loaded. Return whether it did.

    A reader sees either the old or the new file, even after a power loss. Raise SourceFailed if it cannot be written.
    """
    messages = decoder.messages
    if not messages.known.changes:
        return False
    with report_save_errors("flow templates", path):
        _replace(path, _content(decoder))
    messages.known.changes = 0
    return True


def load(path: Path, decoder: Decoder) -> str | None:
    """Load what `save` wrote into a new decoder; do nothing if there is no file.

    Return a warning if the file is unusable. It is then ignored, as exporters repeat their declarations.
    """
    try:
        domains, names = _parsed(_read(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot read flow templates from {path}: {(error.strerror or str(error)).lower()}"
    except _InvalidFile as error:
        return f"ignoring flow templates in {path}: {error}"
    except (ValueError, RecursionError):
        return f"ignoring flow templates in {path}: not a file written by nettop"
    for key, domain in domains:
        decoder.messages.known.restore(key, domain)
    decoder.messages.known.names.update(names)
    decoder.messages.known.changes = 0
    return None


# --- files ----------------------------------------------------------------------------------------------------


@contextmanager
def report_save_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError into SourceFailed."""
    try:
        yield
    except OSError as error:
        raise SourceFailed(
            f"cannot save {what} to {path}: {(error.strerror or str(error)).lower()}",
            "free some space, or choose a directory that nettop can write to",
        ) from error


@contextmanager
def write_file(path: Path, content: bytes, *, is_synced: bool) -> Iterator[None]:
    """Write a file readable only by its owner; remove it if that or the enclosed block fails. Raise OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if is_synced:
                os.fsync(descriptor)
        yield
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.new")
    with write_file(temporary, content, is_synced=True):
        temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise _InvalidFile(f"the file is larger than {FILE_BYTES_MAX >> 20} MiB")
    return content


# --- writing --------------------------------------------------------------------------------------------------


def _content(decoder: Decoder) -> bytes:
    lines = [_line(_of_domain(key, domain)) for key, domain in decoder.messages.known.all.items()]
    by_exporter: dict[bytes, list[list[int | str]]] = {}
    for (exporter, index), texts in decoder.messages.known.names.items():
        by_exporter.setdefault(exporter, []).append([index, *texts])
    lines += [_line({"exporter": exporter.hex(), "names": names}) for exporter, names in by_exporter.items()]
    rest = b"".join(lines)
    return _line({"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(rest)}) + rest


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _of_domain(key: DomainKey, domain: Domain) -> dict[str, Any]:
    sender, port, version, number = key
    return {
        "sender": sender.hex(),
        "port": port,
        "version": version,
        "domain": number,
        "boot_ms": domain.boot_ms,
        "exporters": sorted(exporter.hex() for exporter in domain.exporters),
        "rate": domain.sampling.of_all,
        "samplers": list(domain.sampling.of_samplers.items()),
        "interfaces": list(domain.sampling.of_interfaces.items()),
        "parts": list(domain.sampling.of_parts.items()),
        "templates": [
            [each.id, _scopes(each), [[*field.element, field.length] for field in each.fields]]
            for each in domain.templates.values()
        ],
    }


def _scopes(template: Template) -> int:
    """Return the saved number of scopes: 0 for a template of flows."""
    return template.scopes or (_NO_SCOPES if template.of_options else 0)


# --- reading --------------------------------------------------------------------------------------------------


def _parsed(content: bytes) -> tuple[list[tuple[DomainKey, Domain]], InterfaceNames]:
    """Parse the whole file, so that an invalid one is not used in part. Raise _InvalidFile, or an error of json."""
    first, _, rest = content.partition(b"\n")
    header = json.loads(first)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _InvalidFile("not a file written by nettop")
    if header.get("version") != VERSION:
        raise _InvalidFile(f"it has version {header.get('version')!r}; only version {VERSION} is supported")
    if header.get("crc32") != zlib.crc32(rest):
        raise _InvalidFile("the file is damaged")
    domains: list[tuple[DomainKey, Domain]] = []
    names: InterfaceNames = {}
    for line in rest.splitlines():
        values = json.loads(line)
        if isinstance(values, dict) and "names" in values:
            names.update(_names(values))
        else:
            domains.append(_domain(values))
    return domains, names


def _domain(values: Any) -> tuple[DomainKey, Domain]:
    version = _number(_member(values, "version"), NETFLOW_9, IPFIX)
    key = (
        _address(_member(values, "sender")),
        _number(_member(values, "port"), 0, _U16),
        version,
        _number(_member(values, "domain"), 0, _U32),
    )
    sampling = Sampling(
        _rates(_member(values, "samplers")),
        _rates(_member(values, "interfaces")),
        _number(_member(values, "rate"), 0, RATE_MAX),
        _rates(values.get("parts", [])),
    )
    domain = Domain(
        sampling=sampling,
        boot_ms=_number(_member(values, "boot_ms"), -1, TIME_MAX_MS),
        exporters=set(map(_address, _list(values.get("exporters", [])))),
    )
    for each in _list(_member(values, "templates")):
        template = _template(each, version)
        domain.templates[template.id] = template
    return key, domain


def _template(values: Any, version: int) -> Template:
    number, stated, fields = _list(values, 3)
    scopes = _number(stated, _NO_SCOPES, TEMPLATE_FIELDS_MAX)
    least = SCOPE if version == NETFLOW_9 else 0
    template = Template(
        _number(number, FIRST_DATA_SET, _U16),
        tuple(
            TemplateField(
                (_number(enterprise, least, _U32), _number(element, 0, _U16)), _number(length, 0, _U16)
            )
            for enterprise, element, length in (_list(each, 3) for each in _list(fields))
        ),
        of_options=scopes != 0,
        scopes=max(scopes, 0),
    )
    if not template.scopes <= len(template.fields) <= TEMPLATE_FIELDS_MAX or not template.least_length:
        raise _InvalidFile(f"template {template.id} is not one that an exporter may declare")
    return template


def _names(values: dict[str, Any]) -> InterfaceNames:
    exporter = _address(_member(values, "exporter"))
    return {
        (exporter, _number(index, 0, _U32)): InterfaceName(_text(name), _text(description))
        for index, name, description in (_list(each, 3) for each in _list(values["names"]))
    }


def _rates(values: Any) -> dict[int, int]:
    pairs = (_list(each, 2) for each in _list(values))
    return {_number(number, 0, _U64): _number(rate, 1, RATE_MAX) for number, rate in pairs}


def _address(value: Any) -> bytes:
    address = bytes.fromhex(_text(value))
    if len(address) != _ADDRESS_BYTES:
        raise _InvalidFile(f"{reprlib.repr(value)} is not an address")
    return address


def _member(values: Any, name: str) -> Any:
    if not isinstance(values, dict) or name not in values:
        raise _InvalidFile(f"{name!r} is missing from a line")
    return values[name]


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise _InvalidFile(f"{reprlib.repr(value)} is not a list of the expected length")
    return value


def _number(value: Any, least: int, most: int) -> int:
    # bool is a subclass of int.
    if type(value) is not int or not least <= value <= most:
        raise _InvalidFile(f"{reprlib.repr(value)} is not a number from {least} to {most}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _InvalidFile(f"{reprlib.repr(value)} is not a string")
    # Reject lone surrogates: they can be read but not written back.
    value.encode()
    return value
