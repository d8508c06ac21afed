# SPDX-License-Identifier: Apache-2.0
"""Redaction by value: secrets are planted in every text that can be recorded, and searched for in every byte."""

from __future__ import annotations

import base64
import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import count, cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nettop.cli import run
from nettop.commands import bundle as command
from nettop.doctor import bundle as doctor
from nettop.errors import ExitCode
from nettop.output import bundle as output
from nettop.query.address import MAPPED, address_text
from nettop.query.sentences import filled
from nettop.recording.chunks import Chunk, Decompressor, Group, What
from nettop.recording.reader import Readings
from nettop.recording.redaction.redactor import Redactor
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots import all_views, own_lenses, view_name
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Kind, Lens
from nettop.snapshots.snapshot import Rows, Snapshot, rows_from, unknown_value
from tests.builders.replaying import no_probes
from tests.unit.build import WALL_NS
from tests.unit.recorded import Taken, opened, random_readings, write

KEY = bytes(range(32))
ADDRESSES = [
    bytes.fromhex("2a01023400560078009a00bc00de00f0"),
    bytes.fromhex("fd12345678900001000000000000abcd"),
    MAPPED + bytes([203, 7, 113, 77]),
    MAPPED + bytes([192, 168, 77, 133]),
]
FORMS = (
    "{}-x", "web-{}", "cannot open /home/{}/x on {}.example:443", '"{}"', "/system.slice/{}.service", "docker:{}",
    "{} of 203.7.113.77 and 2a01:234:56:78:9a:bc:de:f0", "curl --password={} http://{}@[fe80::1%{}]", "eth-{}",
    "{}: Permission denied",
)  # fmt: skip


LENSES = {lens.id: lens for lens in (*own_lenses(), SELF)}


class Secrets:
    """Distinct words, none of which can be part of a pseudonym, and texts with them."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers = count(1)
        self._forms = cycle(FORMS)

    def word(self) -> str:
        """Return a new secret."""
        digits = np.base_repr(next(self._numbers), 4).rjust(6, "0").translate(str.maketrans("0123", "0189"))
        self.words.append(f"zq{digits}")
        return self.words[-1]

    def text(self) -> str:
        """Return a text with a new secret."""
        return next(self._forms).replace("{}", self.word())


def _in_base64(shift: int, word: str) -> bytes:
    """Return the digits that are the same whatever stands around a word, which begins at this place of three bytes."""
    digits = base64.b64encode(bytes(shift) + word.encode()).rstrip(b"=")
    return digits[4 if shift else 0 : -1]


ENCODINGS: tuple[Callable[[str], bytes], ...] = (
    *(partial(str.encode, encoding=name) for name in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")),
    lambda word: word.upper().encode(),
    lambda word: word.encode().hex().encode(),
    lambda word: word.encode().hex().upper().encode(),
    *(partial(_in_base64, shift) for shift in range(3)),
)
"""Secrets as texts, dumps and messages have them."""


def found_in(content: bytes, secrets: Secrets) -> set[str]:
    """Return the secrets that a content has in any encoding."""
    begins = {word[:4] for word in secrets.words}
    present = [encoding for encoding in ENCODINGS if any(encoding(begin) in content for begin in begins)]
    return {word for word in secrets.words if any(encode(word) in content for encode in present)}


# --- planting -----------------------------------------------------------------------------------------------------


def planted(lens: Lens, secrets: Secrets) -> list[Taken]:
    """Return readings with a secret wherever there is a text."""
    taken = [
        replace(
            reading,
            snapshot=_planted_snapshot(reading.snapshot, secrets),
            batches=tuple(_planted_rows(batch, secrets) for batch in reading.batches),
        )
        for reading in random_readings(lens, 7, 3)
    ]
    if lens is FINDINGS_LENS:
        last = taken[-1].snapshot
        found = {FINDINGS.name: rows_from(FINDINGS, list(_planted_findings(secrets)), 1)}
        taken.append(Taken(replace(last, wall_ns=last.wall_ns + 1, tables=found)))
    return taken


def _planted_snapshot(snapshot: Snapshot, secrets: Secrets) -> Snapshot:
    return replace(
        snapshot,
        tables={name: _planted_rows(rows, secrets) for name, rows in snapshot.tables.items()},
        ended={
            name: replace(
                ended,
                rows=tuple(_planted_rows(rows, secrets) for rows in ended.rows),
                total=_planted_rows(ended.total, secrets),
            )
            for name, ended in snapshot.ended.items()
        },
        counts={secrets.text(): 1},
        lost={secrets.text(): 1},
        gaps={secrets.text(): secrets.text()},
        hooks=(
            HookStatus(
                secrets.text(), secrets.text(), ((secrets.text(), secrets.text()),), (secrets.text(),)
            ),
            HookStatus("events", None, (("tp_btf", secrets.text()),), (), secrets.text()),
        ),
    )


def _planted_rows(rows: Rows, secrets: Secrets) -> Rows:
    """Return rows with two secrets in each text field. All fields share a table of texts, as sources may let them, and
    it has one that is no row's."""
    array = rows.array.copy()
    for field in (field for field in rows.table.stored if field.kind is Kind.ADDRESS):
        at = np.arange(len(array)) % len(ADDRESSES)
        array[field.name] = np.frombuffer(b"".join(ADDRESSES), ">u8").reshape(-1, 2)[at]
    fields = [field for field in rows.table.stored if field.kind is Kind.TEXT]
    values = [secrets.text()] if fields else []
    for field in fields:
        array[field.name] = len(values) + np.arange(len(array)) % 2
        array[field.name][2::3] = unknown_value(array.dtype[field.name])
        values += [secrets.text(), secrets.text()]
    texts = {field.name: values for field in fields}
    return replace(rows, array=array, texts=texts, variant=secrets.text())


def _planted_findings(secrets: Secrets) -> Iterator[dict[str, Any]]:
    """Yield a finding of each kind, whose sentences and filter have secrets for all their values."""
    for number, (lens, table) in enumerate(all_views()):
        for at, rule in enumerate(table.rules):
            said = {
                name: secrets.word()
                for name in set(output_names(rule.says + rule.advice))
                if name == "process" or (field := table.by_name.get(name)) is None or field.kind is Kind.TEXT
            }
            values = dict.fromkeys(output_names(rule.says + rule.advice), "7") | said
            name = "process" if "process" in table.by_name else table.key
            yield {
                "id": 1000 * number + at,
                "severity": rule.severity.value,
                "certainty": rule.certainty.value,
                "since": WALL_NS,
                "lasted": 1,
                "unseen": 0,
                "kind": rule.name,
                "process": values.get("process"),
                "view": view_name(lens, table),
                "finding": filled(rule.says, values),
                "advice": filled(rule.advice, values),
                "filter": f"{name}={secrets.word() if name == 'process' else 7}",
                "explains": secrets.text(),
            }


def output_names(template: str) -> list[str]:
    """Return the names of the values in a template."""
    return [part.partition("}")[0] for part in template.split("{")[1:]]


def origin(secrets: Secrets, lens: Lens) -> Group:
    """Return the beginning of a group with a secret in each of its texts."""
    facts = {name: secrets.text() for name in ("name", "kernel", "machine", "cpus", "boot_id", "owner")}
    return Group(
        (lens.id,),
        1.0,
        secrets.text(),
        facts | {secrets.text(): secrets.text()},
        {"flows": [secrets.text(), secrets.text()], secrets.text(): [secrets.text(), ""]},
    )


# --- searching ----------------------------------------------------------------------------------------------------


def assert_no_address(content: bytes) -> None:
    """Assert that a content has no planted address, as bytes or as text."""
    for raw in ADDRESSES:
        assert raw not in content
        assert address_text(raw).encode() not in content


def everything_in(content: bytes) -> bytes:
    """Return the bytes of a recording, all that they decompress to, and the rows that are read from it."""
    parts = [content]
    with opened(content) as recorded:
        assert recorded.groups
        lens = LENSES[recorded.groups[0].group.lenses[0]]
        readings = Readings(recorded, lens)
        for reading in filter(None, map(readings.at, (placed.wall_ns + 10**9 for placed in recorded.groups))):
            parts += (
                rows.array[name].tobytes()
                for rows in (*reading.now.tables.values(), *reading.events)
                for name in rows.table.dtype.names or ()
            )
        for number, placed in enumerate(recorded.groups):
            parts.append(json.dumps(asdict(placed.group)).encode())
            streams: dict[int, Decompressor] = {}
            parts += (
                streams.setdefault(chunk.lens, Decompressor()).decompress(chunk)
                for chunk in recorded.chunks(number)
            )
    return b"\n".join(parts)


@pytest.fixture(scope="module")
def planted_everywhere() -> tuple[Secrets, list[tuple[Lens, Group, list[Taken]]]]:
    """Return readings of every lens, and the secrets in them."""
    secrets = Secrets()
    lenses = [(lens, origin(secrets, lens), planted(lens, secrets)) for lens in (*own_lenses(), SELF)]
    assert len(set(secrets.words)) >= 500
    return secrets, lenses


def test_secrets_are_found_if_nothing_is_redacted(
    planted_everywhere: tuple[Secrets, list[tuple[Lens, Group, list[Taken]]]],
) -> None:
    """The search finds what a plain recording has: every secret, also those in texts that no row refers to."""
    secrets, lenses = planted_everywhere
    everything = b""
    for _, group, taken in lenses:
        content = bytearray()
        write(RecordingWriter(Sink(content.extend), group), taken)
        everything += everything_in(bytes(content))
    assert found_in(everything, secrets) == set(secrets.words)
    assert all(raw in everything and address_text(raw).encode() in everything for raw in ADDRESSES[:3:2])
    for encode in ENCODINGS:
        assert found_in(b"\0\0" + encode(secrets.words[7]) + b"\0", secrets) >= {secrets.words[7]}


def test_no_secret_is_recorded(
    planted_everywhere: tuple[Secrets, list[tuple[Lens, Group, list[Taken]]]],
) -> None:
    """A redacted recording has none of them, neither in what its rows refer to nor beside that."""
    secrets, lenses = planted_everywhere
    for lens, group, taken in lenses:
        content = bytearray()
        write(RecordingWriter(Sink(content.extend), group, Redactor(KEY)), taken)
        everything = everything_in(bytes(content))
        assert not found_in(everything, secrets), lens.id
        assert_no_address(everything)


@pytest.mark.parametrize("lens", own_lenses(), ids=[lens.id for lens in own_lenses()])
def test_no_secret_is_in_a_bundle(lens: Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in any text of a bundle: not in what is said of damage, nor in doctor's report."""
    secrets = Secrets()
    path = tmp_path / "r.nettop"
    with path.open("wb") as file:
        write(RecordingWriter(Sink(file.write), origin(secrets, lens)), planted(lens, secrets))
        newer = json.dumps({"format": 99, "nettop": secrets.text(), "lenses": []}).encode()
        file.write(Chunk(What.GROUP, 0, WALL_NS, newer, len(newer)).to_bytes())
    names = {kind: {secrets.word(), secrets.word()} for kind in ("host", "user", "process", "interface")}
    report = "\n".join(
        f"{kind} {name}: not available" for kind, names_of_kind in names.items() for name in names_of_kind
    )
    monkeypatch.setattr(output, "is_from_here", lambda _: True)
    monkeypatch.setattr(doctor, "names_here", lambda: names)
    monkeypatch.setattr(
        command, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": _saying(report.encode())})
    )
    monkeypatch.chdir(tmp_path)
    assert run(["bundle", str(path), "--redact", "-o", "b.tar.gz"], no_probes) == ExitCode.SOURCE
    content = Path("b.tar.gz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {entry.name: archive.extractfile(entry) for entry in archive}
    assert [Path(name).name for name in members] == [
        "README.txt", "findings.txt", "doctor.txt", "recording.nettop",
    ]  # fmt: skip
    unpacked = gzip.decompress(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        recording = archive.extractfile("nettop-bundle/recording.nettop")
        assert recording is not None
        unpacked += everything_in(recording.read())
    assert not found_in(content + unpacked, secrets)


def _saying(report: bytes) -> Any:
    return lambda *_, **__: SimpleNamespace(stdout=report, stderr=b"")


# --- what stays ---------------------------------------------------------------------------------------------------


def test_texts_keep_their_codes() -> None:
    """A text that stays has the same code in the next reading, so that little is written; those that no row has any
    more are forgotten in the end."""
    redactor, table = Redactor(KEY), SOCKETS
    stays = redactor.texts.name("proc", "stays")
    codes, most = set[int](), 0
    for reading in range(3000):
        array: Array = np.full(2, 0, table.dtype)
        array["id"], array["process"] = [1, 2], [1, 0]
        rows = Rows(table, array, {"process": [f"name {reading}", "stays"]}, 1)
        redacted = redactor.snapshot(Snapshot("connections", reading, reading, {table.name: rows}))
        shown = redacted.tables[table.name]
        code = int(shown.array["process"][0])
        assert shown.texts["process"][code] == stays
        codes.add(code)
        most = max(most, len(shown.texts["process"]))
    assert len(codes) <= 2
    assert most < 1500
