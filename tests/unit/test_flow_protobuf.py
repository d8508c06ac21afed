# SPDX-License-Identifier: Apache-2.0
"""Flows in Protocol Buffers: conformance with the published schema, and rejected input."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nettop.collector.columns import ADDRESS, BY_NAME, COLUMNS, Flows, default_values
from nettop.collector.protobuf import PRODUCED, decode_batch, encoded_batch
from nettop.errors import UsageError

SCHEMA = Path(__file__).parents[2] / "docs/reference/flows.proto"
RECEIVED_MS = 1_700_000_000_000


def example_flows(count: int) -> Flows:
    """Return flows with values in each kind of column."""
    flows = {column.name: default_values(column.name, count) for column in COLUMNS}
    packed = b"".join(bytes(10) + b"\xff\xff\xc0\0\2" + bytes([number]) for number in range(count))
    flows["src"] = np.frombuffer(packed, ADDRESS)
    flows["received"][:] = RECEIVED_MS
    flows["bytes"][:] = np.arange(count, dtype=np.uint64) + np.uint64(2**63)
    flows["dst_port"][:] = 443
    flows["protocol_version"][:] = 9
    return flows


def rows_of(flows: Flows) -> list[tuple[Any, ...]]:
    """Return the flows one by one."""
    return list(zip(*(flows[column.name].tolist() for column in COLUMNS), strict=True))


def values_of(name: str, count: int) -> st.SearchStrategy[Any]:
    """Draw any values of a column."""
    dtype = np.dtype(BY_NAME[name].dtype)
    if dtype.kind == "V":
        return st.binary(min_size=16 * count, max_size=16 * count).map(
            lambda packed: np.frombuffer(packed, dtype)
        )
    return arrays.arrays(dtype, count)


@given(st.data(), st.integers(0, 5))
def test_encoding_and_decoding(data: st.DataObject, count: int) -> None:
    """Every value of every column survives, except the receive time and protocol version if unset."""
    flows = {column.name: default_values(column.name, count) for column in COLUMNS}
    for name in data.draw(st.sets(st.sampled_from(sorted(BY_NAME)))):
        flows[name] = data.draw(values_of(name, count))
    decoded, decoded_count = decode_batch(encoded_batch(flows, 0, count), RECEIVED_MS)
    assert decoded_count == count
    flows["received"] = np.where(flows["received"] == 0, RECEIVED_MS, flows["received"])
    flows["protocol_version"] = np.where(flows["protocol_version"] == 0, PRODUCED, flows["protocol_version"])
    assert rows_of(decoded) == rows_of(flows)


def test_a_part_is_encoded() -> None:
    """A range of flows."""
    flows = example_flows(5)
    assert rows_of(decode_batch(encoded_batch(flows, 1, 3), 0)[0]) == rows_of(flows)[1:3]


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with docs/reference/flows.proto; skip without protoc."""
    if shutil.which("protoc") is None:
        pytest.skip("this machine has no protoc")
    directory = tmp_path_factory.mktemp("schema")
    (directory / "flows.proto").write_text(SCHEMA.read_text())
    return directory


def protoc(directory: Path, how: str, content: bytes) -> bytes:
    """Convert a FlowBatch to text or bytes with protoc."""
    return subprocess.run(
        ["protoc", f"--{how}=nettop.flows.v1.FlowBatch", "flows.proto"],
        cwd=directory,
        input=content,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout


def test_producers_use_the_schema(messages: Path) -> None:
    """Messages of another implementation of the schema are understood, and vice versa."""
    text = b'flows { src: "\\300\\000\\002\\001" dst_port: 443 bytes: 18446744073709551615 start: 5 direction: 1 }'
    flows, count = decode_batch(protoc(messages, "encode", text), RECEIVED_MS)
    assert count == 1
    row = {name: values[0] for name, values in flows.items()}
    assert row["src"].tobytes() == bytes(10) + b"\xff\xff" + ip_address("192.0.2.1").packed
    assert (row["dst_port"], row["bytes"], row["start"], row["direction"]) == (443, 2**64 - 1, 5, 1)
    assert (row["received"], row["protocol_version"]) == (RECEIVED_MS, PRODUCED)
    written = protoc(messages, "decode", encoded_batch(flows, 0, 1)).decode()
    assert "bytes: 18446744073709551615" in written
    assert "direction: 1" in written
    assert "src_port" not in written


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff\xff", "the body is not a FlowBatch"),
        (bytes.fromhex("0a03 80ff"), "the body is not a FlowBatch"),
        # Flow.dst_port (17) = 65536, Flow.src (12) = "abc"
        (bytes.fromhex("0a05 8801 808004"), "flow 0: dst_port is 65536, out of range (0 to 65535)"),
        (bytes.fromhex("0a00 0a05 6203 616263"), "flow 1: src has 3 bytes"),
    ],
)
def test_invalid_batches_are_refused(content: bytes, what: str) -> None:
    """The whole batch is rejected, with the position of the error."""
    with pytest.raises(UsageError) as refused:
        decode_batch(content, RECEIVED_MS)
    assert refused.value.what == what


def test_unknown_fields_are_let_pass() -> None:
    """Fields of a later version of the schema."""
    assert decode_batch(bytes.fromhex("0a03 b83e01"), RECEIVED_MS)[1] == 1  # field 999


@given(st.binary(max_size=64))
def test_anything_else_is_an_error(content: bytes) -> None:
    """Any input is either a batch or a UsageError."""
    with suppress(UsageError):
        decode_batch(content, RECEIVED_MS)
