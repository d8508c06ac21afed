# SPDX-License-Identifier: Apache-2.0
"""BPF programs that time UDP requests, and the layouts that they share with nettop."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettop.kernel.bpf import process_columns
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import columns, extend_dtype, row_header
from nettop.probes.probe import with_types
from nettop.probes.services.programs import OWNER, SLOTS_MAPS, SLOTS_SOURCES, slots_defines, slots_header
from nettop.snapshots.services import HOOK_UDP_REQUESTS, TIMEOUT_S, UDP

REQUESTS_MAX = 1 << 13
"""Maximum requests without a response, as long as the reader has not removed them."""
_QUEUES_MAX = 1 << 12
"""Maximum sockets and peers whose requests have no number of their own; the least recently used are evicted."""
_CLOSED_MAX = 1 << 12
_QUESTION_BYTES = 68
"""Bytes kept of a question: names up to 64, their type and class."""

REQUEST_KEY = np.dtype(
    [
        ("cookie", "u8"),
        ("address", "u8", (2,)),
        *columns("u2", "port", "number"),
        *columns("u2", "side", "zero"),
    ]
)
"""Identity of a request: its socket, the peer, and DNS's number or that in the queue of requests to this peer."""
REQUEST = extend_dtype(
    OWNER,
    (
        ("local_address", "(2,)u8"),
        ("since", "u8"),
        *columns("u4", "service", "netns", "bytes"),
        *columns("u2", "local_port", "pad"),
    ),
)
"""A request without a response, and the process that asks or is asked. `since` is by CLOCK_MONOTONIC."""
OPEN_REQUEST = np.dtype([*REQUEST_KEY.descr, *((name, REQUEST[name]) for name in REQUEST.names or ())])
QUESTION = np.dtype([("bytes", "u4"), ("text", "u1", (_QUESTION_BYTES,))])
"""The last question that a DNS service was asked, as in the request."""

WALK = "bpf_iter__task_file"
LAST_BIND = "sock__post_bind6"
HOOKS = ("sock__post_bind4", LAST_BIND, "sock__release", "skb__egress", "skb__ingress")
"""Programs in the order in which they are attached. Sockets bound before the second one are found by a walk; the
response of a request that was seen to be sent comes later than the last one is attached."""
FALLBACKS = Fallbacks(
    HOOK_UDP_REQUESTS, (Mechanism("cgroup_skb + cgroup/sock_release + post_bind", (*HOOKS, WALK)),)
)

_SLICES = (
    *process_columns.SLICES,
    Slice("task_struct", {name: name for name in process_columns.TASK_MEMBERS}, {}),
    Slice("bpf_iter_meta", {"seq": "seq"}, {}),
    Slice("socket", {"sk": "sk"}, {}),
    Slice("net", {"inum": "ns.inum"}, {}),
    Slice(
        "sock",
        {name: f"__sk_common.{name}" for name in ("skc_family", "skc_num", "skc_net")}
        | {name: name for name in ("sk_protocol", "sk_type")},
        {},
    ),
)


def program_text() -> ProgramText:
    """Return the programs that time UDP requests."""
    return ProgramText(
        sources=(*SLOTS_SOURCES, str(Path(__file__).with_name("udp_requests.bpf.c"))),
        header=slots_header()
        + row_header("request_key", REQUEST_KEY)
        + row_header("request", REQUEST, ("owner", OWNER))
        + row_header("question", QUESTION),
        slices=_SLICES,
        functions=with_types((*HOOKS, WALK)),
        optional=(WALK,),
        maps=("requests", "closed", "ports", "questions", "ends", "queues"),
        defines={
            **slots_defines(),
            "REQUESTS_MAX": REQUESTS_MAX,
            "QUEUES_MAX": _QUEUES_MAX,
            "CLOSED_MAX": _CLOSED_MAX,
            "TIMEOUT_NS": round(TIMEOUT_S * 1e9),
            "PROTOCOL_UDP": UDP,
        },
        shared=SLOTS_MAPS,
    )
