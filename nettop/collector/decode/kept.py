# SPDX-License-Identifier: Apache-2.0
"""Exporters' declarations, saved to disk so that a restarted collector need not wait for the next ones.

The file consists of JSON lines: a header with the checksum of the rest, and one line per observation domain.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from nettop.collector.decode.batch import DomainKey
from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.domains import Domain
from nettop.collector.decode.templates import Template, TemplateField
from nettop.collector.files import report_save_errors, sync, write_file
from nettop.reading import read_file

FORMAT, VERSION = "nettop flow templates", 2
FILE_BYTES_MAX = 128 << 20
"""Maximum size of a file that is read. A decoder's state takes less."""


class _InvalidFile(Exception):
    """A file that is not in the format of `save`."""


def save(path: Path, decoder: Decoder) -> bool:
    """Save the decoder's state if it changed since it was last saved or loaded. Return whether it did.

    A reader sees either the old or the new file, even after a power loss. Raise SourceFailed if it cannot be written.
    """
    known = decoder.messages.known
    if not known.changes:
        return False
    with report_save_errors("flow templates", path):
        with write_file(path.with_name(f"{path.name}.new"), _content(decoder), is_synced=True) as temporary:
            temporary.replace(path)
        sync(path.parent)
    known.changes = 0
    return True


def load(path: Path, decoder: Decoder) -> str | None:
    """Load what `save` wrote into a new decoder; do nothing if there is no file.

    Return a warning if the file is unusable. It is then ignored, as exporters repeat their declarations.
    """
    try:
        domains = _parsed(read_file(path, FILE_BYTES_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot read flow templates from {path}: {(error.strerror or str(error)).lower()}"
    except _InvalidFile as error:
        return f"ignoring flow templates in {path}: {error}"
    except (ValueError, TypeError, LookupError, RecursionError):
        return f"ignoring flow templates in {path}: not a file written by nettop"
    known = decoder.messages.known
    for key, domain in domains:
        known.restore(key, domain)
    known.changes = 0
    return None


# --- format ---------------------------------------------------------------------------------------------------


def _content(decoder: Decoder) -> bytes:
    known = decoder.messages.known
    lines = [_line(_of_domain(key, domain)) for key, domain in known.all.items()]
    rest = b"".join(lines)
    return _line({"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(rest)}) + rest


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _of_domain(key: DomainKey, domain: Domain) -> dict[str, Any]:
    sender, *numbers = key
    return {
        "sender": sender.hex(),
        "numbers": numbers,
        "boot_ms": domain.boot_ms,
        "exporters": sorted(exporter.hex() for exporter in domain.exporters),
        "rates": [[*part, rate] for part, rate in domain.rates.items()],
        "names": [[exporter.hex(), index, name] for (exporter, index), name in domain.names.items()],
        "templates": [
            [
                template.id,
                template.of_options,
                template.scopes,
                [[*field.element, field.length] for field in template.fields],
            ]
            for template in domain.templates.values()
        ],
    }


def _parsed(content: bytes) -> list[tuple[DomainKey, Domain]]:
    """Parse the whole file, so that an invalid one is not used in part.

    Raise _InvalidFile if the header does not match. The rest is then as it was written.
    """
    first, _, rest = content.partition(b"\n")
    header = json.loads(first)
    if header["format"] != FORMAT:
        raise _InvalidFile("not a file written by nettop")
    if header["version"] != VERSION:
        raise _InvalidFile(f"it has version {header['version']!r}; only version {VERSION} is supported")
    if header["crc32"] != zlib.crc32(rest):
        raise _InvalidFile("the file is damaged")
    # Earlier versions wrote names in lines of their own, without the domain.
    return [_domain(line) for line in map(json.loads, rest.splitlines()) if "exporter" not in line]


def _domain(line: dict[str, Any]) -> tuple[DomainKey, Domain]:
    port, version, number = line["numbers"]
    domain = Domain(
        rates={(part, of): rate for part, of, rate in line["rates"]},
        names={(bytes.fromhex(exporter), index): name for exporter, index, name in line.get("names", ())},
        boot_ms=line["boot_ms"],
        exporters=set(map(bytes.fromhex, line["exporters"])),
    )
    for template_id, of_options, scopes, fields in line["templates"]:
        of_record = tuple(
            TemplateField((enterprise, element), length) for enterprise, element, length in fields
        )
        domain.templates[template_id] = Template(template_id, of_record, of_options, scopes)
    return (bytes.fromhex(line["sender"]), port, version, number), domain
