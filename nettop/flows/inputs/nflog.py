# SPDX-License-Identifier: Apache-2.0
"""Packets that a firewall rule logs to a group (NFLOG; `log group 5` in nftables). Each becomes a flow.

The header include/uapi/linux/netfilter/nfnetlink_log.h describes the messages.
"""

from __future__ import annotations

import struct

import numpy as np

from nettop.flows.decode.packets import PACKET_COLUMNS, FirstHeader, decode_packets
from nettop.flows.inputs.input import NFLOG, of_this_host
from nettop.flows.inputs.netfilter import BODY, configure, messages, now_ms, open_netfilter
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import OpenSocket, Receiver, Wait
from nettop.kernel.net import netlink

KEPT_BYTES = 256
_SUBSYSTEM = 4 << 8
_PACKET, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD = 1, 2, 4, 5
_BIND = struct.pack("B", 1)
_COPY_PACKET = 2
_TIMESTAMP, _IN_DEVICE, _OUT_DEVICE, _PAYLOAD = 3, 4, 5, 9
_GATHERED, _HUNDREDTHS = 64, 10
"""The kernel sends packets in groups of this size, or at the latest after so many hundredths of a second."""
_SLOT_BYTES, _BATCH = 1 << 16, 64


def open_group(group: int, receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket that receives packets logged to a group. Raise Unsupported, PermissionMissing or NettopError."""
    name = f"NFLOG group {group}"
    opened = open_netfilter(0, name, receive_buffer_bytes)
    body = BODY.pack(0, 0, group)
    for kind, content in (
        (_COMMAND, _BIND),
        (_MODE, struct.pack("!IBx", KEPT_BYTES, _COPY_PACKET)),
        (_TIMEOUT, struct.pack("!I", _HUNDREDTHS)),
        (_THRESHOLD, struct.pack("!I", _GATHERED)),
    ):
        try:
            configure(opened, _CONFIG, body + netlink.attribute(kind, content), name)
        except BaseException:
            opened.socket.close()
            raise
    opened.socket.setblocking(False)
    return opened


class LoggedPackets:
    """An Input of packets that the firewall logs to a group."""

    def __init__(self, opened: OpenSocket, wait: Wait) -> None:
        self.receiver = Receiver([opened], wait, batch=_BATCH, slot_bytes=_SLOT_BYTES)
        self._packets = 0

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Implement `Input.receive`."""
        received = self.receiver.receive(timeout_s)
        received_ms = now_ms()
        payloads, rows = [], []
        for kind, body in messages(received):
            said = netlink.contents(body[BODY.size :])
            if kind == _PACKET and _PAYLOAD in said:
                payloads.append(bytes(said[_PAYLOAD][:KEPT_BYTES]))
                devices = (_index(said.get(kind)) for kind in (_IN_DEVICE, _OUT_DEVICE))
                rows.append((_time_ms(said.get(_TIMESTAMP), received_ms), *devices))
        if not rows:
            return len(received.starts) > 0
        buffer = np.frombuffer(b"".join(payloads), np.uint8)
        lengths = np.array([len(payload) for payload in payloads], np.intp)
        ends = np.cumsum(lengths)
        headers = decode_packets(buffer, ends - lengths, ends, FirstHeader.IP)
        times, in_if, out_if = np.array(rows, np.int64).T
        flows = {
            **{name: headers[name] for name in PACKET_COLUMNS},
            **of_this_host(NFLOG, times),
            "start": times,
            "bytes": headers["ip_bytes"].astype(np.uint64),
            "packets": np.ones(len(rows), np.uint64),
            "sampling_rate": np.ones(len(rows), np.uint32),
            "in_if": in_if.astype(np.uint32),
            "out_if": out_if.astype(np.uint32),
        }
        self._packets += len(rows)
        pipeline.add_flows(flows, len(rows))
        return True

    def count(self, pipeline: Pipeline) -> None:
        """Implement `Input.count`."""
        pipeline.counted["logged_packets"] = self._packets
        pipeline.counted["own_drops"] = sum(self.receiver.drops())


def _time_ms(stamp: memoryview | None, received_ms: int) -> int:
    """Return the packet's timestamp if the kernel provides it (struct nfulnl_msg_packet_timestamp), else the receive
    time.
    """
    if stamp is None or len(stamp) < 16:
        return received_ms
    seconds, microseconds = struct.unpack_from("!QQ", stamp)
    return int(seconds * 1000 + microseconds // 1000)


def _index(device: memoryview | None) -> int:
    return 0 if device is None or len(device) < 4 else int(struct.unpack_from("!I", device)[0])
