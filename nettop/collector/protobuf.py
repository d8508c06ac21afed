# SPDX-License-Identifier: Apache-2.0
"""Flows in Protocol Buffers, for other producers and stores; docs/reference/flows.proto is the schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from nettop.collector.columns import ADDRESS, COLUMNS, FlowColumn, Flows, default_values
from nettop.errors import UsageError
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Array

PACKAGE = "nettop.flows.v1"
PRODUCED = 204
"""Protocol version of flows whose producer does not set one."""
_REMEDY = "see docs/reference/flows.proto"
_KINDS = {ADDRESS: "bytes", "i8": "int64"}
"""Protobuf types by column dtype; all others are uint64."""


def decode_batch(content: bytes, received_ms: int) -> tuple[Flows, int]:
    """Decode a FlowBatch. Return its flows and their number. Flows without a receive time get `received_ms`.

    Raise UsageError if it is not a FlowBatch, or a value does not fit its column.
    """
    from google.protobuf.message import DecodeError

    batch = _batch_class()()
    try:
        batch.ParseFromString(content)
    except DecodeError as error:
        raise UsageError("the body is not a FlowBatch", _REMEDY) from error
    flows = {column.name: _column(column, batch.flows) for column in COLUMNS}
    flows["received"][flows["received"] == 0] = received_ms
    flows["protocol_version"][flows["protocol_version"] == 0] = PRODUCED
    return flows, len(batch.flows)


def encoded_batch(flows: Flows, begin: int, end: int) -> bytes:
    """Encode the flows from `begin` to `end` as a FlowBatch."""
    batch = _batch_class()()
    columns = [
        (column.name, [value.tobytes() for value in flows[column.name][begin:end]])
        if column.dtype == ADDRESS
        else (column.name, flows[column.name][begin:end].tolist())
        for column in COLUMNS
    ]
    defaults = {column.name: bytes(16) if column.dtype == ADDRESS else column.default for column in COLUMNS}
    for at in range(end - begin):
        flow = batch.flows.add()
        for name, values in columns:
            if values[at] != defaults[name]:
                setattr(flow, name, values[at])
    content: bytes = batch.SerializeToString()
    return content


def _column(column: FlowColumn, flows: Sequence[Any]) -> Array:
    values = default_values(column.name, len(flows))
    given = [(at, getattr(flow, column.name)) for at, flow in enumerate(flows) if flow.HasField(column.name)]
    if not given:
        return values
    places = [at for at, _ in given]
    if column.dtype == ADDRESS:
        packed = b"".join(_address(column, at, value) for at, value in given)
        values[places] = np.frombuffer(packed, ADDRESS)
        return values
    limits = np.iinfo(column.dtype)
    for at, value in given:
        if not limits.min <= value <= limits.max:
            raise UsageError(
                f"flow {at}: {column.name} is {value}, out of range ({limits.min} to {limits.max})",
                f"{_REMEDY}; the batch was not stored",
            )
    values[places] = [value for _, value in given]
    return values


def _address(column: FlowColumn, at: int, value: bytes) -> bytes:
    if len(value) not in (4, 16):
        raise UsageError(
            f"flow {at}: {column.name} has {len(value)} bytes", "use 4 or 16; the batch was not stored"
        )
    return MAPPED + value if len(value) == 4 else value


def protobuf_type(column: FlowColumn) -> str:
    """Return the type of a column in the schema."""
    return _KINDS.get(column.dtype, "uint64")


@cache
def _batch_class() -> Any:
    """Return the FlowBatch class, built from the columns; no code is generated."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    # Syntax proto2, where optional fields need no oneof each; on the wire, both are the same.
    file = descriptor_pb2.FileDescriptorProto(name="nettop/flows.proto", package=PACKAGE)
    field = descriptor_pb2.FieldDescriptorProto
    flow, batch = (file.message_type.add(name=name) for name in ("Flow", "FlowBatch"))
    for number, column in enumerate(COLUMNS, 1):
        kind = getattr(field, f"TYPE_{protobuf_type(column).upper()}")
        flow.field.add(name=column.name, number=number, label=field.LABEL_OPTIONAL, type=kind)
    batch.field.add(
        name="flows",
        number=1,
        label=field.LABEL_REPEATED,
        type=field.TYPE_MESSAGE,
        type_name=f".{PACKAGE}.Flow",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.FlowBatch"))
