# SPDX-License-Identifier: Apache-2.0
"""Redaction of recordings: nothing of what is replaced remains, and what belonged together still does."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.commands.redaction import redaction_key
from nettop.errors import NettopError, UsageError
from nettop.probes.findings import limits
from nettop.query.address import MAPPED, address_text
from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.sentences import filled, unit_in_sentence
from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.recording.chunks import Decompressor, Group
from nettop.recording.files import OneFile
from nettop.recording.reader import RecordedFile
from nettop.recording.redaction import findings, texts
from nettop.recording.redaction.pseudonyms import KEY_BYTES, Pseudonyms
from nettop.recording.redaction.redactor import Redactor
from nettop.recording.redaction.texts import Texts, treatment_of
from nettop.recording.writer import RecordingWriter, Sink
from nettop.settings.shared import Redacting
from nettop.snapshots import all_views, bandwidth, drops, lenses, own_lenses, view_name
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.ip_protocols import IP_PROTOCOLS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Field, FieldRole, Kind, Lens, Rule, Table
from nettop.snapshots.snapshot import Frame, rows_from
from tests.builders.recording import record_to
from tests.unit.build import Row, example_rows, make_frame
from tests.unit.recorded import random_readings

KEY = bytes(range(32))
SECRET = "sekrit"
"""Is in every text that must not remain."""
SPECIAL = ["0.0.0.0", "127.0.0.53", "224.0.0.251", "255.255.255.255", "::", "::1", "ff02::fb"]
PRIVATE = ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4"]

REPLACED_IDS = {
    "bandwidth.flows.id", "bandwidth.interfaces.id", "bandwidth.protocols.id", "bandwidth.services.id",
    "drops.counters.id", "drops.counters.included_in", "drops.packets.id",
    "findings.findings.cause", "findings.findings.id", "findings.firewall.id", "findings.limits.id",
    "findings.losses.id", "collector.exporters.id", "latency.pairs.id", "services.clients.id",
    "services.clients.service", "services.connections.service", "services.services.id", "services.waiting.service",
}  # fmt: skip


def stored_fields() -> Iterator[tuple[str, Table, Field]]:
    """Yield every stored field, with its lens and table."""
    for lens in (*own_lenses(), SELF):
        for table in lens.tables:
            for field in table.stored:
                yield lens.id, table, field


def test_every_id_is_declared() -> None:
    """Ids that may be hashes of what is replaced, and references to them, are replaced."""
    found = {
        f"{lens}.{table.name}.{field.name}"
        for lens, table, field in stored_fields()
        if field.role is FieldRole.ID
    }
    assert found == REPLACED_IDS


def test_a_new_text_is_replaced_as_a_name() -> None:
    """Replace a text of which nothing is declared."""
    new = Field("motto", Kind.TEXT, "MOTTO", "", "u4")
    assert treatment_of(new)(Texts(Pseudonyms(KEY)), SECRET).startswith("name-")


# --- addresses ----------------------------------------------------------------------------------------------------

octets = st.binary(min_size=4, max_size=4)
pseudonyms = Pseudonyms(KEY)


def ipv4(raw: bytes) -> bytes:
    """Return the replacement of an IPv4 address."""
    replaced = pseudonyms.address(MAPPED + raw)
    assert replaced.startswith(MAPPED)
    return replaced[12:]


def common_bits(one: bytes, other: bytes) -> int:
    """Return how many first bits two addresses share."""
    return 8 * len(one) - (int.from_bytes(one) ^ int.from_bytes(other)).bit_length()


@given(raw=octets, other=octets, bits=st.integers(0, 32), prefix=st.sampled_from([*PRIVATE, "0.0.0.0/0"]))
def test_ipv4_prefixes_are_preserved(raw: bytes, other: bytes, bits: int, prefix: str) -> None:
    """Two addresses of a range share as many first bits as before; of the public ones, from 16 bits on."""
    network, length = prefix.split("/")
    head, mask = int(ip_address(network)), (1 << 32) - (1 << 32 - int(length))
    one = head | int.from_bytes(raw) & ~mask
    shared = (1 << 32) - (1 << 32 - max(bits, int(length)))
    two = one & shared | int.from_bytes(other) & ~shared
    first, second = one.to_bytes(4), two.to_bytes(4)
    if range_of(first) != range_of(second) or "224.0.0" in (address_text(MAPPED + first), prefix):
        return
    before, after = common_bits(first, second), common_bits(ipv4(first), ipv4(second))
    assert after == before or (range_of(first) == "public" and max(before, after) < 16)


def range_of(raw: bytes) -> str:
    """Return the range of an IPv4 address, itself if it has one meaning everywhere."""
    address = IPv4Address(raw)
    if raw[0] in (0, 127) or raw[:3] == bytes([224, 0, 0]) or raw == b"\xff" * 4:
        return str(address)
    if raw[0] >= 240:
        return "reserved"
    return next((network for network in PRIVATE if address in ip_network(network)), "public")


@given(raw=octets)
def test_ipv4_stays_in_its_range(raw: bytes) -> None:
    """Private stays private, multicast multicast, and what has one meaning everywhere is kept."""
    assert range_of(ipv4(raw)) == range_of(raw)


@given(
    one=st.binary(min_size=16, max_size=16),
    other=st.binary(min_size=16, max_size=16),
    bits=st.integers(0, 128),
    head=st.sampled_from([(b"\x20", 3), (b"\xfd", 8), (b"\xfe\x80\0\0\0\0\0\0", 64), (b"\xff\x05", 16)]),
)
def test_ipv6_prefixes_are_preserved(one: bytes, other: bytes, bits: int, head: tuple[bytes, int]) -> None:
    """Two addresses of a range share as many first bits as before, and those of the range."""
    start, length = head
    kept = (1 << 128) - (1 << 128 - length)
    first = int.from_bytes(start.ljust(16, b"\0")) & kept | int.from_bytes(one) & ~kept
    shared = (1 << 128) - (1 << 128 - max(bits, length))
    second = first & shared | int.from_bytes(other) & ~shared
    raw = first.to_bytes(16), second.to_bytes(16)
    replaced = [pseudonyms.address(address) for address in raw]
    assert common_bits(*replaced) == common_bits(*raw)
    assert common_bits(replaced[0], raw[0]) >= length


@given(short=st.lists(octets, max_size=50), long=st.lists(st.binary(min_size=16, max_size=16), max_size=9))
def test_no_two_come_to_the_same(short: list[bytes], long: list[bytes]) -> None:
    """Replace each address by its own pseudonym, the same each time."""
    raw = {*(MAPPED + address for address in short), *long}
    assert len({pseudonyms.address(address) for address in raw}) == len(raw)
    assert [Pseudonyms(KEY).address(address) for address in raw] == [
        pseudonyms.address(address) for address in raw
    ]


@pytest.mark.parametrize("text", SPECIAL)
def test_special_addresses_are_kept(text: str) -> None:
    """Keep addresses that mean the same on every host."""
    assert Texts(pseudonyms).place(text) == text


def test_another_key_replaces_otherwise() -> None:
    """Produce unrelated pseudonyms for another key."""
    one, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    assert one.word("nginx") != other.word("nginx")
    assert one.number(7) != other.number(7)
    public = [MAPPED + bytes([9, at, 7, 7]) for at in range(16)]
    assert [one.address(address) for address in public] != [other.address(address) for address in public]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("203.0.113.7", r"[\d.]+"),
        ("203.0.113.0/24", r"[\d.]+\.0/24"),
        ("203.0.113.7:443", r"[\d.]+:443"),
        ("[2a01::7]:443", r"\[[0-9a-f:]+\]:443"),
        ("[fe80::7]%eth0:*", r"\[fe80::[0-9a-f:]+\]%eth0:\*"),
        ("fe80::7%customer", r"fe80::[0-9a-f:]+%if-\w{8}"),
        ("*:443", r"\*:443"),
        ("443/tcp", "443/tcp"),
    ],
)
def test_places_in_texts(text: str, form: str) -> None:
    """An address in a text is replaced as in a column; ports and lengths stay."""
    replaced = Texts(pseudonyms).place(text)
    assert replaced is not None
    assert re.fullmatch(form, replaced), replaced
    assert "203.0.113" not in replaced
    assert "2a01" not in replaced


# --- free text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("namespace acme-prod: not entered: Permission denied", "namespace WORD: not entered: Permission denied"),
        ("connect to 203.0.113.7:443 refused", "connect to ADDRESS:443 refused"),
        ("host ip-10-20-30-40 at 00:11:22:33:44:55", "host WORD at MAC"),
        ("http://db.acme.example:8123/x", "http:WORD:WORD"),
        ("needs CAP_BPF, or run nettop with sudo", "needs CAP_BPF, or run nettop with sudo"),
        ("10.1.2.0/24 is in fe80::7:", "ADDRESS is in ADDRESS:"),
    ],
)  # fmt: skip
def test_free_text(text: str, scrubbed: str) -> None:
    """Only numbers and the words of nettop are kept."""
    redacted = Texts(pseudonyms).scrubbed(text)
    assert not set(re.findall(r"acme|[^ ]*203[.]0|10[.-]2?[01]", redacted))
    pattern = re.escape(scrubbed).replace("WORD", r"word-\w{8}").replace("MAC", r"mac-\w{8}")
    assert re.fullmatch(pattern.replace("ADDRESS", "[0-9a-f.:/]+"), redacted), redacted


def test_known_names_are_replaced_in_free_text() -> None:
    """Replace known names in free text by the pseudonym of their column, even if they are ordinary words."""
    known = Texts(pseudonyms)
    name = texts.process(known, "failed")
    assert known.scrubbed("failed to read") == f"{name} to read"
    texts.process(known, "sudo")
    assert known.scrubbed("run nettop with sudo: EPERM") == "run nettop with sudo: EPERM"
    assert "EXAMPLE" not in known.scrubbed("EXAMPLE")
    assert "10.0.0.9" not in known.scrubbed("10.0.0.1-10.0.0.9 and +10.0.0.9")


def test_paths_and_interfaces() -> None:
    """Keep names that many hosts have, and replace each part of a path."""
    known = Texts(pseudonyms)
    path = texts.cgroup(known, "/system.slice/acme.service")
    assert re.fullmatch(r"/system\.slice/cg-\w{8}", path)
    kept = ["lo", "eth0", "enp0s31f6", "wlp3s0", "bond1", "if12", "(removed)", ""]
    assert [texts.interface(known, name) for name in kept] == kept
    for each in ("enx001122334455", "acme0", "veth12ab", "vlan-acme"):
        assert re.fullmatch(r"if-\w{8}", texts.interface(known, each))
    assert "203.7" not in texts.resource(known, "local ports to 203.7.113.77:443")
    assert texts.namespace(known, "own") == "own"
    assert texts.namespace(known, "4026531840") == "4026531840"
    assert texts.symbols(known, "a;bpf_prog_0123456789abcdef_acme;b") == "a;bpf_prog_0123456789abcdef;b"


def test_words_of_the_kernel_and_of_nettop_stay() -> None:
    """Keep words that a probe declares or the kernel has names for."""
    known = Texts(pseudonyms)
    kept = {
        texts.declared: [
            *(text for limit in (*limits._ALL, limits._PORTS)
              for text in (limit.setting.replace("/", "."), limit.when_full)),
            *IP_PROTOCOLS.values(), *drops.ETHERTYPES.values(), *bandwidth.ETHERTYPES.values(), "0x88cc", "99",
            *(reason.meaning for reason in drops.REASONS.values()), *drops.OF_NAMESPACES, *drops.OF_DEVICES.values(),
            "veth", "ether", "wireguard", "x86_64", "dropped by spool", "the one before took too long",
        ],
        texts.reason: [*drops.REASONS, "OPENVSWITCH 3", "17", "subsystem 5 3", "NEW_IN_LINUX_9"],
        texts.resource: [limit.resource for limit in limits._ALL],
        texts.symbols: ["nf_hook_slow [nf_tables]", "tcp_v4_rcv;ip_rcv.isra.0;0xffffffff81", "[unknown]"],
        texts.tcp_flags: ["FSRPAUEC", ""],
        texts.version: ["6.1.0-13-amd64", "0.2.0+gabc.dirty"],
    }  # fmt: skip
    for treatment, values in kept.items():
        assert [treatment(known, value) for value in values] == values


# --- sentences ----------------------------------------------------------------------------------------------------

_NAMES = {"process": f"{SECRET}: a b", "comment": f"not {SECRET}", "resource": "TCP memory (pages)"}
RULES = [(lens, table, rule) for lens, table in all_views() for rule in table.rules]
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def example(table: Table, name: str, number: float) -> str:
    """Return a value for a sentence: a secret wherever one could be."""
    field = table.by_name.get(name)
    if name in ("other_end", "listener", "reader", "sender", "client"):
        return f"{SECRET} 2"
    if name == "target" or (field is not None and field.kind is Kind.ENDPOINT):
        return "203.0.113.7:443"
    if name in ("rows", "time_wait", "senders", "unread"):
        return "1,234"
    if field is None or field.kind in (Kind.GAUGE, Kind.COUNTER, Kind.SUM, Kind.RATIO, Kind.QUANTILE):
        return human(number, unit_in_sentence(unit_of(table, name)))
    if field.kind is Kind.ENUM:
        return next(iter(field.labels.values()))
    if field.kind is Kind.ADDRESS:
        return "203.0.113.7"
    if field.kind is Kind.TEXT:
        treatment = treatment_of(field)
        kept = treatment in (texts.declared, texts.symbols, texts.reason)
        return "NO_SOCKET" if kept else _NAMES.get(name, f"{SECRET}-{name}")
    return "7"


@pytest.mark.parametrize(("lens", "table", "rule"), RULES, ids=[rule.name for _, _, rule in RULES])
@pytest.mark.parametrize(("has_process", "number"), [(True, 0.23), (False, 38_200_000.0)])
def test_sentences_are_made_again(
    lens: Lens, table: Table, rule: Rule, number: float, *, has_process: bool
) -> None:
    """A sentence has the replacements of its values in their place, and nothing else is changed."""
    known, original, replaced = Texts(pseudonyms), {}, {}
    for name in _PLACEHOLDER.findall(rule.says + rule.advice):
        value = original[name] = example(table, name, number)
        treatment = findings._treatment_in(table, name)
        replaced[name] = value if treatment is None else treatment(known, value)
    row = {
        "id": 1, "cause": 0, "kind": rule.name, "process": original.get("process") if has_process else None,
        "namespace": None, "view": view_name(lens, table), "filter": rule.filter, "explains": None,
        "finding": filled(rule.says, original), "advice": filled(rule.advice, original),
    }  # fmt: skip
    (redacted,) = findings.redacted(Texts(pseudonyms), [row])
    assert redacted["finding"] == filled(rule.says, replaced)
    assert redacted["advice"] == filled(rule.advice, replaced)
    assert redacted["filter"] == rule.filter
    assert (redacted["kind"], redacted["view"]) == (row["kind"], row["view"])


def test_an_unknown_sentence_is_free_text() -> None:
    """Keep only nettop's words of a sentence that this version does not have."""
    row: dict[str, Any] = dict.fromkeys(field.name for field in FINDINGS.stored)
    row |= {"kind": "odd", "process": "acme", "view": "?", "filter": "process=acme"}
    row |= {"finding": "acme talks to 203.0.113.7"}
    (redacted,) = findings.redacted(Texts(pseudonyms), [row])
    assert "acme" not in json.dumps(redacted)
    assert "203.0.113.7" not in json.dumps(redacted)
    assert redacted["filter"] == ""


def test_filters_select_the_same_rows() -> None:
    """Replace filters of findings so that they still select the evidence."""
    rows: list[Row] = [
        {"id": 1, "process": 'a "b"', "remote_address": "203.0.113.7", "container": "docker:web"},
        {"id": 2, "process": "a", "remote_address": "203.0.113.8", "namespace": "blue"},
        {"id": 3, "process": None, "remote_address": "2a01::7", "namespace": "own"},
    ]
    original = make_frame(rows).now
    redactor = Redactor(KEY)
    redacted = redactor.snapshot(original)
    for text in (
        'process="a \\"b\\"" and remote_address="203.0.113.7" and netns=–',
        "remote=203.0.113.8:52114 or process=–",
        "remote_address=203.0.113.0/24 not namespace=blue",
        "container=docker:web state=ESTABLISHED",
    ):
        row: dict[str, Any] = dict.fromkeys(field.name for field in FINDINGS.stored)
        (found,) = findings.redacted(redactor.texts, [row | {"view": "connections", "filter": text}])
        before, after = (
            parse_filter(SOCKETS, each).mask(View(Frame(snapshot), screen_query(SOCKETS)))
            for each, snapshot in ((text, original), (found["filter"], redacted))
        )
        assert before.any()
        assert (before == after).all(), found["filter"]


# --- whole recordings ---------------------------------------------------------------------------------------------


def payloads(file: RecordedFile) -> Iterator[bytes]:
    """Yield everything in a recording, decompressed."""
    for number, placed in enumerate(file.groups):
        yield json.dumps(placed.group.host | placed.group.failures).encode()
        streams: dict[int, Decompressor] = {}
        for chunk in file.chunks(number):
            yield streams.setdefault(chunk.lens, Decompressor()).decompress(chunk)


@pytest.mark.parametrize("lens", lenses(), ids=[lens.id for lens in lenses()])
@given(seed=st.integers(0, 2**32))
def test_the_rest_is_unchanged(lens: Lens, seed: int) -> None:
    """Keep numbers and order of rows, and the replaced key of a row across readings."""
    redactor, keys = Redactor(KEY), dict[tuple[str, int], int]()
    for reading in random_readings(lens, seed, 3):
        redacted = redactor.snapshot(reading.snapshot)
        assert list(redacted.tables) == list(reading.snapshot.tables)
        for name, rows in reading.snapshot.tables.items():
            table, other = rows.table, redacted.tables[name]
            key = other.array[table.key]
            assert (np.diff(key.astype(object)) > 0).all()
            order = [Redactor(KEY).rows(lens.id, replace(rows, array=rows.array[at : at + 1])).array[table.key][0]
                     for at in range(len(rows))]  # fmt: skip
            places = np.searchsorted(key, np.array(order, key.dtype)) if order else np.zeros(0, int)
            for field in table.stored:
                if field.kind not in (Kind.TEXT, Kind.ADDRESS, Kind.KEY) and field.role is not FieldRole.ID:
                    assert other.array[field.name][places].tobytes() == rows.array[field.name].tobytes()
            for before, after in zip(rows.array[table.key].tolist(), order, strict=True):
                assert keys.setdefault((name, before), int(after)) == after


def test_the_same_name_is_the_same_everywhere() -> None:
    """Use one pseudonym per name in tables, readings and sentences, and keep references between findings."""
    redactor = Redactor(KEY)
    first = redactor.snapshot(make_frame([{"id": 1, "process": "acme"}]).now).tables["sockets"]
    rule = next(rule for rule in SOCKETS.rules if rule.name == "CLOSE_WAIT")
    said = filled(rule.says, {"process": "acme", "rows": "3"})
    rows = [
        {"id": 5, "kind": rule.name, "process": "acme", "finding": said, "cause": 9, "advice": ""},
        {"id": 9, "kind": rule.name, "process": "acme", "finding": said, "explains": said, "advice": ""},
    ]
    found = rows_from(FINDINGS, rows, 1)
    redacted = redactor.rows("findings", found)
    name = first.texts["process"][int(first.array["process"][0])]
    assert redacted.texts["process"] == [name]
    assert redacted.texts["finding"] == [said.replace("acme", name)]
    assert redacted.texts["explains"] == [said.replace("acme", name)]
    ids = redacted.array["id"].tolist()
    assert {5, 9}.isdisjoint(ids)
    assert redacted.array["cause"][redacted.array["explains"] != 0].tolist()[0] in ids


def test_pieces_of_left_rows_keep_their_identity() -> None:
    """Keep the identity of pieces, by which a writer recognises those already listed."""
    redactor = Redactor(KEY)
    taken = [reading.snapshot for reading in random_readings(CONNECTIONS, 3, 12)]
    redacted = [redactor.snapshot(snapshot) for snapshot in taken]
    pairs = {
        id(piece): other
        for snapshot, after in zip(taken, redacted, strict=True)
        for name, ended in snapshot.ended.items()
        for piece, other in zip(ended.rows, after.ended[name].rows, strict=True)
    }
    for snapshot, after in zip(taken[:2], redacted[:2], strict=True):
        for name, ended in snapshot.ended.items():
            assert [id(pairs[id(piece)]) for piece in ended.rows] == list(map(id, after.ended[name].rows))


# --- nettop record ------------------------------------------------------------------------------------------------


def test_a_recording_is_not_continued(tmp_path: Path) -> None:
    """Refuse to continue a recording when redacting, as another key would give other pseudonyms."""
    path = tmp_path / "r.nettop"
    with path.open("wb") as file:
        RecordingWriter(Sink(file.write), Group((), 1.0, "0")).write(make_frame([]).now)
    size = path.stat().st_size
    with pytest.raises(NettopError, match="is a recording already"):
        OneFile(path, continues=False)
    assert path.stat().st_size == size
    OneFile(tmp_path / "new.nettop", continues=False).close()


def test_the_key(tmp_path: Path) -> None:
    """Use a new random key each time, or that of a file, which also requests redaction."""
    path = tmp_path / "key"
    path.write_bytes(KEY)
    assert redaction_key(Redacting()) is None
    keys = [redaction_key(Redacting(redact=True)), redaction_key(Redacting(redact=True))]
    keys += [
        redaction_key(Redacting(redact_key=path)),
        redaction_key(Redacting(redact=True, redact_key=path)),
    ]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]
    assert {len(key or b"") for key in keys} == {KEY_BYTES}


def test_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    """Refuse an unusable key with the reason; do not suggest replacing one that exists, which may be in use."""
    (tmp_path / "short").write_bytes(b"short")
    for name, said, remedy in (
        ("short", "has fewer than 16 bytes", "openssl rand"),
        ("none", "No such file or directory", "openssl rand"),
        (".", "Is a directory", "name a file with a key that you may read"),
    ):
        with pytest.raises(UsageError, match=said) as refused:
            redaction_key(Redacting(redact_key=tmp_path / name))
        assert remedy in refused.value.remedy


@pytest.mark.parametrize("where", ["", "hours/"])
def test_record_redacts(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the host in the file's name and processes in its content with `nettop record --redact`."""
    monkeypatch.chdir(tmp_path)
    record_to(where, redaction_key=KEY, max_bytes=1 << 30)
    (path,) = Path(where or ".").iterdir()
    assert re.fullmatch(r"nettop-host-\w{8}-\w+Z\.nettop", path.name)
    with path.open("rb") as file:
        recorded = RecordedFile(file.fileno())
        assert path.name.startswith(f"nettop-{recorded.groups[0].group.host['name']}-")
        contents = b"".join(payloads(recorded))
    assert os.uname().nodename not in {*recorded.groups[0].group.host.values()}
    assert b"proc-" in contents
    processes = {row["process"] for row in example_rows(5)} - {None}
    assert not any(process.encode() in contents for process in processes)
