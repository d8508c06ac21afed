# SPDX-License-Identifier: Apache-2.0
"""The connections lens: every socket of the machine, with its process and statistics."""

from __future__ import annotations

import errno
from dataclasses import replace

from nettop.errors import UsageError
from nettop.snapshots.schema import (
    NAMESPACE,
    NETNS,
    NO_GROUP,
    ROWS,
    Certainty,
    Field,
    FieldRole,
    Hook,
    Kind,
    Lens,
    Measure,
    Metrics,
    Option,
    Rule,
    Severity,
    Table,
    moved_bytes,
)

PROTOCOLS = {6: "tcp", 17: "udp", 255: "raw", 262: "mptcp"}
"""IPPROTO_* numbers (include/uapi/linux/in.h); every raw socket is `raw`, whichever protocol it speaks."""

FAMILIES = {2: "IPv4", 10: "IPv6"}
"""AF_INET and AF_INET6."""

LISTEN, SYN_RECV, SYN_SENT = 10, 3, 2
STATES = {
    1: "ESTABLISHED",
    SYN_SENT: "SYN_SENT",
    SYN_RECV: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    LISTEN: "LISTEN",
    11: "CLOSING",
    14: "UNCONN",
}
"""States in include/net/tcp_states.h. A request socket (12) is shown as SYN_RECV, as in `ss`; 14 is nettop's own."""

DIRECTIONS = {1: "inbound", 2: "outbound", 3: "inbound?", 4: "outbound?"}
"""`?` means inferred from the socket's backlog, or from a current listener on the local port."""

OWNER_SOURCES = {1: "descriptor", 2: "connect", 3: "accept", 4: "message", 5: "close"}
"""Evidence for the owner: it holds the descriptor, called connect or accept, sent or received the first message, or
closed the socket."""

CONGESTION_CONTROLS = dict(
    enumerate(
        ("other", "reno", "cubic", "bbr", "dctcp", "bic", "cdg", "highspeed", "htcp", "hybla", "illinois", "lp", "nv",
         "scalable", "vegas", "veno", "westwood", "yeah")
    )
)  # fmt: skip
"""Congestion control algorithms of Linux, by nettop's own numbers; `other` is one loaded separately."""

LIMITS = {1: "receiver", 2: "send buffer", 3: "congestion", 4: "path loss", 5: "application", 6: "local drop"}
"""Limits that keep a connection from sending more."""
RECEIVER, SEND_BUFFER, CONGESTION, PATH_LOSS, APPLICATION, LOCAL_DROP = LIMITS

NO_YES = {0: "no", 1: "yes"}

EVENT_KINDS = {1: "connect", 2: "accept", 3: "close", 4: "fail"}

_ERRORS = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timed out",
    errno.ENETUNREACH: "network unreachable",
    errno.EHOSTUNREACH: "host unreachable",
    errno.EADDRNOTAVAIL: "no local port",
    errno.ECONNRESET: "reset by peer",
    errno.ECONNABORTED: "killed",
    errno.EACCES: "prohibited",
}
CLOSED_BY_US, CLOSED_BY_PEER, CLOSED_BY_BOTH, RESET_BY_US, GIVEN_UP = range(201, 206)
REASONS = {n: name.lower() for n, name in errno.errorcode.items()} | _ERRORS | {
    CLOSED_BY_US: "closed by us",
    CLOSED_BY_PEER: "closed by peer",
    CLOSED_BY_BOTH: "closed by both",
    RESET_BY_US: "reset by us",
    GIVEN_UP: "given up",
}  # fmt: skip
"""Reasons why a connection ended: the socket's errno, or else the side that ended it first."""
GRACEFUL = frozenset({CLOSED_BY_US, CLOSED_BY_PEER, CLOSED_BY_BOTH})
"""Reasons that are not failures."""
RESETS = (errno.ECONNRESET, RESET_BY_US)
"""Resets by either side."""

PATH_LOSS_ABOVE = 0.001
"""Share of data segments retransmitted, spurious ones not counted, above which loss, not the window, limits a
connection: at a round-trip time of 50 ms it alone keeps a flow below 9 Mb/s (Mathis et al., The Macroscopic Behavior of
the TCP Congestion Avoidance Algorithm, 1997)."""

_FIELDS = (
    Field("id", Kind.KEY, "ID", "the kernel's socket cookie, never reused", width=12, importance=3,
          role=FieldRole.NUMBER),
    Field("protocol", Kind.ENUM, "PROTO", "transport protocol; the subflows of an MPTCP socket are tcp", "u2",
          importance=49, labels=PROTOCOLS),
    Field("family", Kind.ENUM, "FAMILY", "address family; IPv4 on an IPv6 socket is IPv4", importance=8,
          labels=FAMILIES),
    Field("local_address", Kind.ADDRESS, "LOCAL ADDRESS", "address on this machine", importance=20, zone="device"),
    Field("local_port", Kind.LABEL, "LPORT", "port on this machine, none before bind; for a raw socket the number of "
          "its IP protocol", importance=20),
    Field("remote_address", Kind.ADDRESS, "REMOTE ADDRESS", "address of the peer", importance=20, zone="device"),
    Field("remote_port", Kind.LABEL, "RPORT", "port of the peer; none without a peer", importance=20),
    Field("device", Kind.TEXT, "DEVICE", "interface that it is bound to, on which its link-local addresses are valid; "
          "by number if its namespace cannot be entered", importance=7, formula="skc_bound_dev_if"),
    Field("pid", Kind.LABEL, "PID", "thread group of the owning process", importance=40),
    Field("process", Kind.TEXT, "PROCESS", "name of the owning process's first thread", importance=100),
    Field("uid", Kind.LABEL, "UID", "user who owns the socket", width=6, importance=10),
    NETNS,
    NAMESPACE,
    Field("cgroup", Kind.TEXT, "CGROUP", "control group of the owning process", importance=6),
    Field("container", Kind.TEXT, "CONTAINER", "container (runtime:name or short id) or systemd unit of the process",
          importance=15),
    Field("state", Kind.ENUM, "STATE", "TCP state; UNCONN is a UDP or raw socket without a peer", importance=35,
          labels=STATES),
    Field("direction", Kind.ENUM, "DIRECTION", "who opened it; ? means inferred, not seen", importance=14,
          labels=DIRECTIONS),
    Field("opened_at", Kind.TIME, "OPENED", "when it opened; unknown unless nettop saw it", importance=5),
    Field("bytes_sent", Kind.COUNTER, "SENT", "payload sent, without retransmits", unit="bytes", importance=90,
          formula="bytes_sent − bytes_retrans", tone="sent"),
    Field("bytes_acked", Kind.COUNTER, "ACKED", "payload acknowledged by the peer", unit="bytes", importance=25,
          formula="bytes_sent − bytes_retrans − (snd_nxt − snd_una), less a FIN in flight", tone="sent"),
    Field("bytes_received", Kind.COUNTER, "RECEIVED", "payload received in order", unit="bytes", importance=89,
          formula="bytes_received, less the FIN once received", tone="received"),
    Field("packets_sent", Kind.COUNTER, "PKTS OUT", "segments sent, pure ACKs and retransmits included", unit="packets",
          importance=18, formula="segs_out", tone="sent"),
    Field("data_packets_sent", Kind.COUNTER, "DATA OUT", "segments sent with payload, retransmits included",
          unit="packets", importance=16, formula="data_segs_out", tone="sent"),
    Field("packets_received", Kind.COUNTER, "PKTS IN", "segments received", unit="packets", importance=17,
          formula="segs_in", tone="received"),
    Field("messages_sent", Kind.COUNTER, "MSGS OUT", "UDP messages sent, one per send call, segmented or not",
          unit="messages", width=9, importance=15, tone="sent"),
    Field("messages_received", Kind.COUNTER, "MSGS IN", "UDP messages received, one per receive call", unit="messages",
          width=9, importance=15, tone="received"),
    Field("retransmits", Kind.COUNTER, "RETRANS", "segments retransmitted", unit="packets", width=8, importance=45,
          formula="total_retrans"),
    Field("spurious", Kind.COUNTER, "SPURIOUS", "segments retransmitted though the peer had them, as it reported "
          "(DSACK): they were late or out of order, not lost", "u4", "packets", 8, 11, "dsack_dups"),
    Field("rtt_us", Kind.GAUGE, "RTT", "smoothed round-trip time", "u4", "us", importance=60, formula="srtt_us >> 3"),
    Field("rtt_var_us", Kind.GAUGE, "RTT VAR", "mean deviation of the round-trip time", "u4", "us", importance=42,
          formula="mdev_us >> 2"),
    Field("rtt_min_us", Kind.GAUGE, "RTT MIN", "smallest round-trip time of the last minutes", "u4", "us",
          importance=22, formula="rtt_min.s[0].v"),
    Field("cwnd", Kind.GAUGE, "CWND", "congestion window", "u4", "packets", importance=28, formula="snd_cwnd"),
    Field("mss", Kind.GAUGE, "MSS", "payload that fits into one segment", "u4", "bytes", 6, 7, "mss_cache"),
    Field("bytes_in_flight", Kind.GAUGE, "IN FLIGHT", "bytes sent and not yet acknowledged", "u4", "bytes",
          importance=27, formula="snd_nxt − snd_una"),
    Field("send_queue", Kind.GAUGE, "SENDQ", "bytes not yet sent or acknowledged", "u4", "bytes", 8, 38,
          "write_seq − snd_una"),
    Field("receive_queue", Kind.GAUGE, "RECVQ", "bytes not yet read", "u4", "bytes", 8, 37, "rcv_nxt − copied_seq"),
    Field("last_sent_ms", Kind.GAUGE, "LAST SENT", "time since it last sent data, or opened; to the kernel's tick",
          "u4", "ms", importance=13, formula="lsndtime"),
    Field("last_received_ms", Kind.GAUGE, "LAST RECV", "time since it last received data, or opened; to the kernel's "
          "tick", "u4", "ms", importance=13, formula="icsk_ack.lrcvtime"),
    Field("backlog", Kind.GAUGE, "BACKLOG", "capacity of each queue of a listener", "u4", "connections", importance=9,
          formula="sk_max_ack_backlog"),
    Field("accept_queue", Kind.GAUGE, "ACCEPTQ", "connections of a listener waiting for accept()", "u4", "connections",
          importance=9, formula="sk_ack_backlog"),
    Field("syn_queue", Kind.GAUGE, "SYNQ", "half-open connections (SYN_RECV) of a listener; unknown from sock_diag",
          "u4", "connections", 6, 9, "icsk_accept_queue.qlen"),
    Field("delivery_rate", Kind.GAUGE, "DELIVERY", "most recent rate of acknowledged payload", unit="bytes/s",
          importance=24, formula="rate_delivered × mss_cache ÷ rate_interval_us"),
    Field("limited_by", Kind.ENUM, "LIMITED BY", "what mostly kept it from sending more since the previous reading: "
          "the receiver's window, the send buffer, the congestion window (path loss: if more than "
          f"{PATH_LOSS_ABOVE:.1%} of the data segments were retransmitted, but not spuriously), this host, which "
          "dropped all segments, or the application", importance=43, labels=LIMITS),
    Field("limited_share", Kind.GAUGE, "LIMITED", "share of the time that this limit applied", "f8", "ratio",
          importance=34),
    Field("busy_us", Kind.COUNTER, "BUSY", "time with data not yet sent or acknowledged", unit="us", importance=13,
          formula="chrono_stat[0] + [1] + [2]"),
    Field("receiver_limited_us", Kind.COUNTER, "RWND LIM", "time in which only the receiver's window limited sending",
          unit="us", importance=12, formula="chrono_stat[1]"),
    Field("send_buffer_limited_us", Kind.COUNTER, "SNDBUF LIM", "time in which the send buffer limited sending, as far "
          "as the kernel counts it", unit="us", importance=12, formula="chrono_stat[2]"),
    Field("application_limited", Kind.ENUM, "APP LIM", "whether the application had nothing to send when the delivery "
          "rate was measured", importance=11, labels=NO_YES, formula="rate_app_limited"),
    Field("congestion_limited", Kind.ENUM, "CWND LIM", "whether the congestion window was recently exhausted; unknown "
          "from sock_diag", importance=11, labels=NO_YES, formula="is_cwnd_limited"),
    Field("send_buffer_full", Kind.ENUM, "BUF FULL", "whether the application waits for space in the send buffer; "
          "unknown from sock_diag", importance=11, labels=NO_YES, formula="SOCK_NOSPACE"),
    Field("lost", Kind.GAUGE, "LOST", "segments in flight considered lost", "u4", "packets", importance=19,
          formula="lost_out"),
    Field("reordered", Kind.COUNTER, "REORD", "times that segments were found to be reordered", "u4", "times", 7,
          10, "reord_seen"),
    Field("peer_window", Kind.GAUGE, "PEER WND", "bytes in flight that the peer's receive window allows", "u4", "bytes",
          importance=21, formula="snd_wnd"),
    Field("probes", Kind.GAUGE, "PROBES", "probes in a row that the peer has not answered: of keepalive or, while "
          "data waits, of a closed window", "u1", "probes", 6, 9, "icsk_probes_out"),
    Field("pacing_rate", Kind.GAUGE, "PACING", "rate at which segments are released; none without pacing",
          unit="bytes/s", importance=23, formula="sk_pacing_rate"),
    Field("congestion_control", Kind.ENUM, "CC", "congestion control algorithm", importance=9,
          labels=CONGESTION_CONTROLS, formula="icsk_ca_ops->name"),
    Field("drops", Kind.COUNTER, "DROPS", "packets dropped by the socket itself", unit="packets", width=7,
          importance=26, formula="sk_drops"),
    Field("descriptor", Kind.GAUGE, "FD", "the descriptor by which its owner holds it", "u4", importance=5),
    Field("descriptors_max", Kind.GAUGE, "FD MAX", "descriptors that its owner may open; unknown without a limit, and "
          "from sock_diag", "u4", "descriptors", 9, 4, "RLIMIT_NOFILE"),
    Field("responses", Kind.GAUGE, "RESPONSES", "responses since the services lens was attached; unknown while it is "
          "not attached", "u4", "responses", 9, 4, lens="services", former="answers"),
    Field("response_mean", Kind.GAUGE, "RESPONSE", "mean response time of these responses", unit="ns", importance=4,
          lens="services"),
    Field("waiting_since", Kind.TIME, "WAITING SINCE", "start of its unanswered request", importance=4,
          lens="services"),
    Field("owner_source", Kind.ENUM, "OWNER BY", "how the owner was determined", importance=4, labels=OWNER_SOURCES),
    Field("local", Kind.ENDPOINT, "LOCAL", "address and port on this machine", importance=55,
          parts=("local_address", "local_port"), zone="device", binds=True),
    Field("remote", Kind.ENDPOINT, "REMOTE", "address and port of the peer", importance=95,
          parts=("remote_address", "remote_port"), zone="device"),
    Field("retransmit_ratio", Kind.RATIO, "RETR", "share of data segments that were retransmitted",
          formula="retransmits ÷ data_packets_sent, at most 1: a retransmitted SYN or FIN is in the numerator only",
          parts=("retransmits", "data_packets_sent"), share=True),
    Field("spurious_ratio", Kind.RATIO, "SPUR %", "share of retransmitted segments that were spurious", importance=10,
          formula="spurious ÷ retransmits", parts=("spurious", "retransmits"), share=True),
    Field("descriptor_use", Kind.RATIO, "FD %", "how near its owner is to its limit of descriptors, at least: the "
          "kernel always gives out the lowest free one", importance=5, formula="descriptor ÷ descriptors_max",
          parts=("descriptor", "descriptors_max")),
    Field("send_size", Kind.RATIO, "SEND SIZE", "mean payload of the data segments sent", unit="bytes", importance=9,
          formula="bytes_sent ÷ data_packets_sent", parts=("bytes_sent", "data_packets_sent")),
    Field("accept_queue_use", Kind.RATIO, "ACCQ %", "fill level of a listener's accept queue", importance=9,
          formula="accept_queue ÷ backlog", parts=("accept_queue", "backlog")),
    Field("syn_queue_use", Kind.RATIO, "SYNQ %", "fill level of a listener's queue of half-open connections",
          importance=9, formula="syn_queue ÷ backlog", parts=("syn_queue", "backlog")),
    Field("bytes", Kind.SUM, "BYTES", "payload sent and received", importance=33,
          parts=("bytes_sent", "bytes_received")),
    Field("owner", Kind.GROUP, "PROCESS", "process, PID and container", importance=100,
          parts=("process", "pid", "container")),
    Field("rtt", Kind.GROUP, "RTT ±VAR", "smoothed round-trip time and its deviation", width=14, importance=60,
          parts=("rtt_us", "rtt_var_us")),
)  # fmt: skip

_COUNTED = tuple(
    field.name for field in _FIELDS if field.kind is Kind.COUNTER and field.name != "bytes_acked"
)
_COUNTED_BY_GROUP = ("bytes_sent", "bytes_received", "data_packets_sent", "retransmits")
"""Every group with a series has these, and groups come and go: others would make thousands of series an hour."""


def _top(name: str, rows: str = "", limit: int = 10) -> Metrics:
    """Return metrics of sockets grouped by `name`, for the groups with the most traffic."""
    return Metrics((name,), _COUNTED_BY_GROUP, rows, prefix=f"connections_by_{name}", top=name, limit=limit)


RETRANSMITS_WARN_ABOVE = 0.01
"""Above 1 % of retransmitted data segments, TCP's throughput visibly suffers."""

_ACCEPT_QUEUE_FULL, _SYN_QUEUE_FULL = "accept_queue_use>=80%", "syn_queue_use>=80%"

_OWNER = ("process", "pid", "netns")
_OPEN = "(state=ESTABLISHED or state=CLOSE_WAIT)"
_DROPS = ("firewall drops", "BPF drops", "firewall rule drops", "next hop silent")
"""Kinds about a host that leave what is sent to it unanswered, also on open connections."""
_DROPS_SYNS = ("accept queue full", "SYN queue full", *_DROPS)
"""Kinds about a host that leave a connect to it unanswered."""
_WAITS_FOR = (
    "send queue stuck", "peer gone", "path MTU black hole", "connects unanswered", "waiting for a service",
)  # fmt: skip
"""Kinds about connections that a process opens, for which it neglects its clients."""
_LOSING = ("retransmitting", "losing segments", "losing segments to many")
"""Kinds about connections of which others are acknowledged: what is not may be lost there too."""
_ACKNOWLEDGED = "data_packets_sent_per_s>0 bytes_acked_per_s>0 not spurious_ratio>=50%"
_LOST_TOGETHER = (("data_packets_sent_per_s", 10), ("retransmits_per_s", 2), ("retransmit_ratio", 0.05))
_FIND_THE_LINK = (
    "find the lossy link: errors and drops of the interfaces on the way (lens 3), a full queue, or a policer"
)

_RAISE_FILES = (
    "it leaks them[ (ls -l /proc/{pid}/fd)], or needs more: [prlimit --pid {pid} --nofile=N, ]LimitNOFILE=N"
)

_SOCKET_RULES = (
    # A full queue drops connections; warning at 80 % leaves time to act.
    Rule(
        "accept queue full",
        f"state=LISTEN {_ACCEPT_QUEUE_FULL}",
        "{process} {local} does not accept: {accept_queue} of {backlog} connections wait",
        "listeners that accept too slowly: when the queue is full, the kernel drops handshakes",
        "see what {process}[ {pid}] does instead (top -H, its log); a longer queue (listen(), net.core.somaxconn) "
        "only helps if it keeps up on average",
        by=(*_OWNER, "local_port"),
        explained_in_process=("no descriptors left", *_WAITS_FOR),
        until_sent=True,
    ),
    # A connection is half open for a round trip, and a short queue is full of one of them: in a flood, all the time.
    Rule(
        "SYN queue full",
        f"state=LISTEN {_SYN_QUEUE_FULL}",
        "{process} {local}: {syn_queue} half-open connections, of {backlog}[, from {senders} addresses]; their "
        "SYN-ACKs are not answered",
        "listeners whose SYN-ACKs are not answered, because of a flood or loss; when the queue is full, the kernel "
        "sends SYN cookies or drops SYNs",
        "net.ipv4.tcp_syncookies=1 keeps it reachable; block the senders, if REMOTE repeats and is not forged",
        certainty=Certainty.LIKELY,
        by=(*_OWNER, "local_port"),
        after_s=1.0,
        until_sent=True,
        proof=("connections", "state=SYN_RECV"),
    ),
    # A connection closed by its peer first is in this state until the program closes it too, for milliseconds: a busy
    # server always has some. A hundred that stay, or twenty and a growing number, means that they are leaked. Those
    # that were not accepted yet have no process, which could not close them.
    Rule(
        "CLOSE_WAIT",
        "state=CLOSE_WAIT send_queue=0 not (process=– pid=–)",
        "{process} leaves {rows} connections open that their peers have closed",
        "connections that the peer has closed and the program has not: most likely it leaks them",
        "a bug in {process}: it does not call close() after reading the end; restarting it helps until the next time",
        certainty=Certainty.LIKELY,
        by=_OWNER,
        min_rows=100,
        min_growing_rows=20,
    ),
    # A program that waits for data reads it within microseconds, and a busy one within an interval of a second. One
    # that plays it takes some meanwhile.
    Rule(
        "data unread",
        "state=ESTABLISHED receive_queue>=4096 bytes_received_per_s=0",
        "{process} {local} has not read {receive_queue} from {remote} for {last_received_ms}"
        "[; {other_end} waits for it]",
        "connections with data that the program does not read, so that no more arrives: it is stopped, stuck or busy",
        "see what {process}[ {pid}] does instead: ps, its log[, cat /proc/{pid}/stack]",
        by=_OWNER,
        held="receive_queue",
        min_interval_s=1.0,
        lasts="last_received_ms",
        explained_in_process=_WAITS_FOR,
    ),
    # Full segments are lost again and again while shorter ones arrive: only size tells them apart. A connection whose
    # full segments are acknowledged is no proof of that. Plain loss, which explains it, is found sooner.
    Rule(
        "path MTU black hole",
        "state=ESTABLISHED lost>0 cwnd<=2 bytes_acked_per_s=0 send_queue>=1000",
        "{process} → {remote}: full segments of {mss} are lost, smaller ones arrive",
        "connections whose full segments never arrive, though shorter ones do: a link on the path carries smaller "
        "packets only, and the ICMP messages that would say so are dropped",
        "try a smaller size: ip route change … mtu 1300, or net.ipv4.tcp_mtu_probing=1; let ICMP pass the firewalls",
        certainty=Certainty.POSSIBLE,
        by=("remote_address", "netns"),
        after_s=4.0,
        beside="packets_received_per_s>0 not (bytes_acked_per_s>0 send_size>=1000)",
        explained_by=(*_DROPS, *_LOSING),
    ),
    # Data sent a moment ago is unacknowledged too, so only connections that were busy all the time count. The kernel
    # counts busy time in ticks, so some is missing. Below a second, one round trip may take the whole interval.
    Rule(
        "peer gone",
        f"{_OPEN} send_queue>0 bytes_acked_per_s=0 busy_us_per_s>=90% peer_window>0 bytes_in_flight>0 "
        "last_received_ms>=2s",
        "{process} gets no answer from {remote}; {send_queue} wait",
        "connections whose data is not acknowledged at all: the peer or the path to it is gone",
        "check the peer and the path (ping, tracepath); net.ipv4.tcp_retries2 or TCP_USER_TIMEOUT end it sooner",
        certainty=Certainty.LIKELY,
        by=(*_OWNER, "remote_address"),
        min_interval_s=1.0,
        after_s=1.0,
        explained_by=(*_DROPS, "path MTU black hole", *_LOSING),
    ),
    # The first probe is unanswered for a round trip on a healthy connection too. While data waits, probes are about the
    # peer's window instead.
    Rule(
        "idle peer gone",
        "probes>=2 send_queue=0",
        "{process}'s idle connection to {remote}: {probes} keepalive probes unanswered",
        "connections without traffic whose peer has stopped to answer keepalive: it is gone, or the path to it",
        "check the peer and the path (ping, tracepath); {process} only notices after net.ipv4.tcp_keepalive_probes of "
        "them, or sooner by TCP_KEEPCNT and TCP_KEEPINTVL",
        Severity.WARNING,
        Certainty.LIKELY,
        by=(*_OWNER, "remote_address"),
    ),
    Rule(
        "send queue stuck",
        f"{_OPEN} send_queue>0 bytes_acked_per_s=0 busy_us_per_s>=90%",
        "{process} cannot send to {remote}: {send_queue} wait[, because {reader} does not read]",
        "connections that always had data to send, none of which was acknowledged: the peer does not read, or is gone",
        "see what the peer does; its receive window shows whether it reads (PEER WND 0: it does not)",
        certainty=Certainty.LIKELY,
        by=(*_OWNER, "remote_address"),
        min_interval_s=1.0,
        explained_by=("data unread", *_DROPS, "peer gone", "path MTU black hole", *_LOSING),
    ),
    # Only a connection that was not accepted yet is open without a process; and the kernel's own, such as those of NFS.
    Rule(
        "never accepts",
        f"process=– pid=– {_OPEN} last_sent_ms>=10s bytes_sent_per_s=0",
        "{listener} has not accepted connections to {local} for {last_sent_ms}: {rows} waiting",
        "connections that have waited for accept() for more than ten seconds, though the queue may not be full",
        "see what {listener} does instead: ps, its log",
        certainty=Certainty.LIKELY,
        by=("local_port", "netns"),
        beside="state=LISTEN process!=–",
        lasts="last_sent_ms",
        explained_by=("accept queue full",),
        explained_in_process=("no descriptors left", *_WAITS_FOR),
    ),
    # A resolver sends one or two queries on a socket, and closes it once they are answered.
    Rule(
        "DNS unanswered",
        "protocol=udp remote_port=53",
        "{process} waits for the DNS server {remote_address}: no response yet, {rows} waiting",
        "sockets with queries to a DNS server that nothing has answered for an interval: it is slow or silent",
        "ask it: dig @{remote_address}; check /etc/resolv.conf, the path and the firewalls",
        certainty=Certainty.LIKELY,
        by=("netns", "process", "remote_address"),
        after_s=1.0,
        totals="messages_received=0 ((messages_sent>0 messages_sent_per_s=0) or messages_sent>=3)",
        explained_by=("DNS silent", "DNS slow"),
        proof=("services", "protocol=udp port=53 side=used"),
    ),
    # A program that lowered its own limit, such as the child of sshd before a login, has descriptors above it.
    Rule(
        "few descriptors left",
        "descriptor_use>=80% descriptor_use<100%",
        "{process} has descriptor {descriptor} of {descriptors_max}: soon it can open no further files or sockets",
        "processes near their limit of open files (RLIMIT_NOFILE)",
        _RAISE_FILES,
        Severity.WARNING,
        by=_OWNER,
        explained_by=("no descriptors left",),
    ),
    # accept() takes a descriptor before it takes a connection, so these wait while there is none.
    Rule(
        "no descriptors left",
        "descriptor_use>=99.5% descriptor_use<100%",
        "{process} accepts nothing: it has descriptor {descriptor} of {descriptors_max}, and can open no more",
        "processes that accept no connections because they have reached their limit of open files (RLIMIT_NOFILE)",
        _RAISE_FILES,
        by=_OWNER,
        only_explains=True,
    ),
    # A SYN is sent again after a second.
    Rule(
        "connects unanswered",
        "state=SYN_SENT lost>0",
        "{process} gets no answer to connects to {remote}: {rows} waiting",
        "connections from here whose SYN has not been answered for a second: nobody is there, or a firewall drops it",
        "check the address and the path (ping, tracepath), and the firewalls on both ends",
        certainty=Certainty.LIKELY,
        by=(*_OWNER, "remote_address", "remote_port"),
        explained_by=_DROPS_SYNS,
    ),
    Rule(
        "losing datagrams",
        "protocol=udp drops_per_s>0",
        "{process} {local} loses {drops_per_s} datagrams/s[: its receive buffer is full, with {unread}]"
        "[; {sender} sends them]",
        "UDP sockets that drop datagrams: the program reads too slowly, or its receive buffer is too small "
        "(SO_RCVBUF, net.core.rmem_max); with an empty buffer, also a filter (IPAddressDeny= of systemd, eBPF), or "
        "wrong checksums",
        "if it is only bursts, a larger buffer helps (SO_RCVBUF, net.core.rmem_max); else {process} is too slow; lens "
        "5 says whether a filter or a checksum is the reason",
        by=(*_OWNER, "local_port"),
    ),
    # Without a minimum of segments, one of few would be a high percentage.
    Rule(
        "retransmitting",
        "bytes_acked_per_s>0 ((retransmits_per_s>=10 retransmit_ratio>=2%) or "
        "(retransmits_per_s>=2 data_packets_sent_per_s>=10 retransmit_ratio>=5%)) not spurious_ratio>=50%",
        "{process} sends {retransmit_ratio} of its segments to {remote_address} again, {retransmits_per_s}/s",
        "connections that retransmit many segments: the path loses them, as the peer does not report that half of them "
        "or more had arrived (SPURIOUS)",
        _FIND_THE_LINK,
        Severity.WARNING,
        by=("netns", "process", "remote_address"),
        after_s=3.0,
        pause_s=1.5,
    ),
    # Each of a hundred connections may send too few segments to be judged alone.
    Rule(
        "losing segments",
        _ACKNOWLEDGED,
        "{process} sends {retransmit_ratio} of its segments to {remote_address} again, {retransmits_per_s}/s on {rows} "
        "connections",
        "connections to one address that together retransmit many segments, though none of them sends many: the path "
        "loses them",
        _FIND_THE_LINK,
        Severity.WARNING,
        by=("netns", "process", "remote_address"),
        min_rows=2,
        together=_LOST_TOGETHER,
        after_s=3.0,
        pause_s=1.5,
        explained_by=("retransmitting",),
    ),
    Rule(
        "losing segments to many",
        _ACKNOWLEDGED,
        "{process} sends {retransmit_ratio} of its segments again, {retransmits_per_s}/s on {rows} connections to "
        "{remote_address}",
        "connections of a process that together retransmit many segments, to many addresses: what their paths have in "
        "common loses them, such as the link of this host",
        _FIND_THE_LINK,
        Severity.WARNING,
        by=("netns", "process"),
        min_rows=2,
        together=_LOST_TOGETHER,
        after_s=3.0,
        pause_s=1.5,
        explained_by=("losing segments", "retransmitting"),
    ),
    # 536 is what a peer gets that announces none, or whose option was removed on the way (RFC 9293, 3.7.1).
    Rule(
        "small segments",
        "data_packets_sent_per_s>=100 mss<=536",
        "{process} → {remote_address} sends segments of only {mss}",
        "busy connections with a very small maximum segment size, maybe in one direction only: the peer, a route or a "
        "middlebox asked for it, or removed the option that says it",
        "see the route (ip route get), its advmss and mtu, and MSS clamping in firewalls (TCPMSS)",
        Severity.HINT,
        by=("remote_address", "netns", "process"),
        after_s=2.0,
    ),
    # A request that gets an answer must be sent at once, however short it is.
    Rule(
        "tiny sends",
        "data_packets_sent_per_s>=1000 send_size<100 bytes_received_per_s=0",
        "{process} → {remote} sends {data_packets_sent_per_s} segments/s of {send_size}",
        "connections that send many segments with little data in each: the program flushes too often",
        "gather more data for each send() (a buffer, writev, TCP_CORK); TCP_NODELAY alone does not do that",
        Severity.HINT,
        by=(*_OWNER, "remote_address"),
        after_s=2.0,
    ),
)

SOCKETS = Table(
    name="sockets",
    fields=_FIELDS,
    screen=("owner", "protocol", "local", "remote", "bytes_sent_per_s", "bytes_received_per_s", "rtt",
            "retransmit_ratio", "limited_by", "limited_share", "state"),
    text=("process", "pid", "protocol", "local", "remote", "bytes_sent", "bytes_received", "retransmits", "rtt_us",
          "rtt_var_us", "state"),
    sort="-bytes_per_s",
    watched="bytes",
    details=(
        ("who", ("owner", "uid", "cgroup", "local", "remote", "device", "protocol", "family", "direction", "state",
                 "opened_at", "namespace")),
        ("how much", ("bytes_sent", "bytes_acked", "bytes_received", "packets_sent", "data_packets_sent",
                      "packets_received", "messages_sent", "messages_received", "last_sent_ms",
                      "last_received_ms")),
        ("how well", ("rtt", "rtt_min_us", "retransmit_ratio", "retransmits", "spurious", "lost", "reordered", "probes",
                      "drops", "delivery_rate", "send_size")),
        ("what limits it", ("limited_by", "limited_share", "receiver_limited_us", "send_buffer_limited_us", "busy_us",
                            "application_limited", "congestion_limited", "send_buffer_full", "cwnd", "mss",
                            "congestion_control", "send_queue", "bytes_in_flight", "peer_window", "pacing_rate",
                            "receive_queue", "backlog", "accept_queue", "accept_queue_use", "syn_queue",
                            "syn_queue_use")),
        ("responses", ("responses", "response_mean", "waiting_since")),
        ("by number", ("id", "netns", "owner_source", "descriptor", "descriptors_max", "descriptor_use")),
    ),
    # Listeners are shown by default only while in trouble.
    default_filter=f"(state!=LISTEN or {_ACCEPT_QUEUE_FULL} or {_SYN_QUEUE_FULL}) state!=TIME_WAIT state!=UNCONN",
    groupings="nettop.probes.connections.groupings",
    rules=_SOCKET_RULES,
    metrics=(
        Metrics(("protocol", "state"), rows="sockets"),
        Metrics(("protocol",), _COUNTED),
        _top("process", "sockets"),
        _top("container", "sockets"),
        # More than of the others, because an alert names the port.
        _top("port", "sockets", limit=20),
        # No count of rows: it would include idle sockets, so every address of a busy server would be named at each
        # reading.
        _top("remote"),
        _top("network"),
    ),
    measures=(
        *moved_bytes("traffic", "process", 2_000),
        Measure("traffic", ("process",), ROWS, 5, "{process} has {now} connections, {before} before",
                filter="state=ESTABLISHED"),
        Measure("traffic", ("process", "remote_address", "remote_port"), "bytes", 2_000,
                began="[{process} ]talks to {target}: {now}, {before} before",
                ended="[{process} ]no longer talks to {target}: {now}, {before} before",
                filter="remote_port>0 not direction~inbound", comes_and_goes=True),
        Measure("traffic", ("process", "local_port", "remote_address"), "bytes", 2_000,
                began="[{process}] :{local_port} has a new client {remote_address}: {now}, {before} before",
                ended="[{process}] :{local_port} has lost its client {remote_address}: {now}, {before} before",
                filter="direction~inbound", comes_and_goes=True),
        Measure("retransmits", ("process",), "retransmits", 1,
                "{process} sends {now} segments/s again, {before}/s before", is_bad=True),
    ),
)  # fmt: skip

_NOT_IN_EVENTS = {
    "rtt", "bytes", "send_queue", "receive_queue", "last_sent_ms", "last_received_ms", "backlog", "accept_queue",
    "syn_queue", "accept_queue_use", "send_size", "descriptor", "descriptors_max", "descriptor_use",
    "syn_queue_use", "bytes_in_flight", "messages_sent", "messages_received", "limited_by", "limited_share",
    "application_limited", "congestion_limited", "send_buffer_full", "lost", "peer_window", "responses",
    "response_mean", "waiting_since", "pacing_rate", "congestion_control", "probes",
}  # fmt: skip


def _as_event_field(field: Field) -> Field:
    """Return a socket's field converted for events: final counters are gauges, and the socket's key is a label."""
    if field.kind is Kind.KEY:
        return replace(field, kind=Kind.LABEL, refers=True)
    return replace(field, kind=Kind.GAUGE) if field.kind is Kind.COUNTER else field


EVENTS = Table(
    name="events",
    fields=(
        Field("event_id", Kind.KEY, "EVENT ID", "sequence number of the event; lost ones leave gaps", width=10,
              importance=2, role=FieldRole.NUMBER),
        Field("time", Kind.TIME, "TIME", "when the kernel changed the connection's state", width=27, importance=96),
        Field("event", Kind.ENUM, "EVENT", "what happened; fail: the connection never opened", importance=99,
              labels=EVENT_KINDS),
        Field("reason", Kind.ENUM, "REASON", "why it ended: the errno, or who closed it", "u2", importance=92,
              labels=REASONS),
        Field("duration_us", Kind.GAUGE, "LASTED", "time since it opened, or from connect() to the failure", unit="us",
              importance=70),
        Field("handshake_us", Kind.GAUGE, "HANDSHAKE", "from connect() to the established connection; if accepted, "
              "from the SYN-ACK to its ACK, unless that came late, with data (TCP_DEFER_ACCEPT)", "u4", "us",
              importance=40),
        *(_as_event_field(field) for field in _FIELDS if field.name not in _NOT_IN_EVENTS),
    ),
    key="event_id",
    screen=("time", "event", "reason", "owner", "local", "remote", "duration_us", "bytes_sent", "bytes_received",
            "retransmits"),
    text=("time", "event", "reason", "process", "pid", "local", "remote", "duration_us", "bytes_sent",
          "bytes_received", "retransmits"),
    sort="-time",
    text_sort="event_id",
    append=True,
    metrics=(),
)  # fmt: skip

_CONNECTS = ("netns", "port", "process", "remote_address")
_NO_LOCAL_PORT, _OTHER_REASON = (f'reason{sign}"{_ERRORS[errno.EADDRNOTAVAIL]}"' for sign in ("=", "!="))
_GIVEN_UP = 'reason="given up"'
_WITHOUT_IPV6 = f'(reason="{_ERRORS[errno.ENETUNREACH]}" remote_address!=0.0.0.0/0)'

FAILURES = Table(
    name="failures",
    fields=(
        Field("id", Kind.KEY, "ID", "sequence number of the group", width=8, importance=2, role=FieldRole.NUMBER),
        Field("reason", Kind.ENUM, "REASON", "why connections failed or were reset", "u2", importance=99,
              labels=REASONS),
        Field("remote_address", Kind.ADDRESS, "REMOTE ADDRESS", "address of the peer", importance=95),
        Field("port", Kind.LABEL, "PORT", "the service's port: the peer's if opened from here, else the local one",
              importance=90),
        Field("direction", Kind.ENUM, "DIRECTION", "who opened it", importance=30, labels=DIRECTIONS),
        Field("process", Kind.TEXT, "PROCESS", "name of the owning process", importance=84),
        NETNS,
        NAMESPACE,
        Field("failed", Kind.COUNTER, "FAILED", "connections that never opened, since nettop started",
              unit="connections", importance=98),
        Field("reset", Kind.COUNTER, "RESET", "open connections that were reset or broke, since nettop started",
              unit="connections", importance=97),
        Field("failures", Kind.COUNTER, "FAILURES", "connections that failed or were reset, since nettop started",
              unit="connections", width=9),
        Field("first_at", Kind.TIME, "FIRST", "when the first of them ended", width=27, importance=20),
        Field("last_at", Kind.TIME, "LAST", "when the last of them ended", width=27, importance=60),
    ),
    screen=("reason", "remote_address", "port", "process", "failed", "reset", "failures_per_s", "last_at", "first_at"),
    text=("failed", "reset", "reason", "remote_address", "port", "process", "netns", "namespace",
          "first_at", "last_at"),
    sort="-failed",
    begins_at_zero=True,
    cumulative=True,
    hooks=("events",),
    rules=(
        Rule(
            "no local port",
            f"direction=outbound {_NO_LOCAL_PORT} failed_per_s>0",
            "{process} cannot connect to {target}: no local port, {failed_per_s}/s"
            "[; this host has {time_wait} in TIME_WAIT]",
            "connects from here that fail because every local port already has a connection to that address and port, "
            "many of them in TIME_WAIT",
            "reuse connections (keep-alive, a pool); widen net.ipv4.ip_local_port_range",
            by=_CONNECTS,
            after_s=1.0,
            pause_s=10.0,
        ),
        Rule(
            "connects fail",
            # nettop itself looks whether its collector runs.
            f"direction=outbound {_OTHER_REASON} failed_per_s>0 not {_GIVEN_UP} not {_WITHOUT_IPV6} "
            "not process=nettop",
            "{process} cannot connect to {target}: {reason}, {failed_per_s}/s",
            "connections from here that never open; REASON says why",
            "refused: nobody listens there; timed out: nobody answers, or a firewall drops it; unreachable: see ip "
            "route get",
            by=("reason", "netns", "port", "process", "remote_address"),
            after_s=1.0,
            pause_s=10.0,
            explained_by=("connects unanswered", *_DROPS_SYNS),
        ),
        Rule(
            "connects given up",
            f"direction=outbound {_GIVEN_UP} failed_per_s>0",
            "{process} gives up connects to {target}, {failed_per_s}/s",
            "connections from here that the program closes before they are open: it waits for a short time only; one "
            "that tries several addresses at once, and keeps the first that answers, looks the same",
            "see whether {process} reaches the service by another address; ping {remote_address}",
            Severity.HINT,
            Certainty.POSSIBLE,
            by=_CONNECTS,
            after_s=1.0,
            pause_s=10.0,
            explained_by=("connects unanswered", *_DROPS_SYNS),
        ),
        Rule(
            "connects without IPv6",
            f"direction=outbound {_WITHOUT_IPV6} failed_per_s>0",
            "{process} cannot connect to {target}: no route for IPv6, {failed_per_s}/s",
            "connections from here to IPv6 addresses for which there is no route; a host with IPv4 only looks the "
            "same, whose programs go on with the IPv4 address of a name",
            "ip -6 route get {remote_address}",
            Severity.HINT,
            Certainty.POSSIBLE,
            by=_CONNECTS,
            after_s=1.0,
            pause_s=10.0,
        ),
        Rule(
            "connects here fail",
            "direction=inbound failed_per_s>=10",
            "{failed_per_s} connects/s to port {port} of {process} fail: {reason}",
            "connections to a listener here that never open",
            "a flood, a scan, or clients that give up; see the SYN_RECV connections of the port",
            Severity.WARNING,
            Certainty.LIKELY,
            by=("port", "netns", "process", "reason"),
            explained_by=("accept queue full", "SYN queue full"),
        ),
        Rule(
            "resets connections",
            'reason="reset by us" reset_per_s>=5',
            "{process} resets {reset_per_s} connections/s, port {port}",
            "processes that reset connections instead of closing them",
            "it closes them with unread data, or aborts them (SO_LINGER): see its log",
            Severity.WARNING,
            by=("netns", "port", "process"),
            after_s=1.0,
            explained_by=("accept queue full",),
        ),
        Rule(
            "connections reset",
            'reason!="reset by us" reset_per_s>=5',
            "{reset_per_s} connections/s of {process} with {remote_address}, port {port}, end early: {reason}",
            "open connections that the peer resets, or that break",
            "see the log of the peer",
            Severity.WARNING,
            by=("reason", "netns", "port", "process", "remote_address"),
            after_s=1.0,
            explained_by=("resets connections", "accept queue full"),
        ),
    ),
    metrics=(Metrics(("reason",), ("failures",), prefix="connections"),),
    measures=(
        Measure("failures", ("reason", "process", "port"), "failures", 0.2,
                "{now} connections/s fail[ for {process}][ at port {port}]: {reason}, {before}/s before", is_bad=True),
    ),
)  # fmt: skip

GROUPINGS = ("process", "remote", "network", "port", "container", "netns", "state")
"""Values of `--group`; `network` is the remote's /24 (IPv6: /64), `port` the service's."""

_SUMMED = ("bytes_sent", "bytes_received", "packets_sent", "packets_received", "data_packets_sent",
           "retransmits")  # fmt: skip

GROUPS = Table(
    name="groups",
    fields=(
        Field("id", Kind.KEY, "ID", "sequence number of the group", width=8, importance=2, role=FieldRole.NUMBER),
        Field("group", Kind.TEXT, "GROUP", "what its sockets have in common: a process, remote, network, port …",
              width=24, importance=100, role=FieldRole.PLACE),
        Field("pid", Kind.LABEL, "PID", "for a process, its thread group", importance=40),
        Field("protocol", Kind.ENUM, "PROTO", "for a port, its protocol", "u2", importance=8, labels=PROTOCOLS),
        Field("port", Kind.LABEL, "PORT", "for a port, its number", importance=8),
        Field("container", Kind.TEXT, "CONTAINER", "for a process, its container or systemd unit", importance=15),
        Field("connections", Kind.GAUGE, "CONNS", "open TCP connections", "u4", "connections", importance=85),
        Field("opened", Kind.COUNTER, "OPENED", "TCP connections opened since nettop started", unit="connections",
              importance=60),
        Field("closed", Kind.COUNTER, "CLOSED", "TCP connections closed since nettop started", unit="connections",
              importance=59),
        Field("failed", Kind.COUNTER, "FAILED", "TCP connections that never opened, since nettop started",
              unit="connections", importance=82),
        Field("reset", Kind.COUNTER, "RESET", "TCP connections reset by either side since nettop started; also counted "
              "as closed", unit="connections", importance=58),
        *(replace(field, help=f"{field.help}; of current sockets and those closed since nettop started")
          for field in _FIELDS if field.name in _SUMMED),
        Field("rtt_median_us", Kind.GAUGE, "RTT MED", "median of the smoothed round-trip times of its connections",
              "u4", "us", importance=61),
        Field("rtt_worst_us", Kind.GAUGE, "RTT MAX", "maximum of these round-trip times", "u4", "us", importance=48),
        *(field for field in _FIELDS if field.name in ("retransmit_ratio", "bytes")),
        Field("name", Kind.GROUP, "GROUP", "the group; for a process with its PID and container", importance=100,
              parts=("group", "pid", "container")),
    ),
    screen=("name", "connections", "opened_per_s", "failed_per_s", "bytes_sent_per_s", "bytes_received_per_s",
            "rtt_median_us", "rtt_worst_us", "retransmit_ratio"),
    text=("group", "pid", "connections", "opened", "closed", "failed", "reset", "bytes_sent", "bytes_received",
          "retransmits", "rtt_median_us", "rtt_worst_us"),
    sort="-bytes_per_s",
    begins_at_zero=True,
    cumulative=True,
    watched="bytes",
    metrics=(),
    rules=(
        Rule(
            "short connections",
            "opened_per_s>=500 closed_per_s>=500",
            "{group} opens and closes {opened_per_s} connections/s",
            "processes with very many connections, each for a moment",
            "reuse connections: keep-alive, a pool",
            Severity.HINT,
            by=("group", "pid"),
            after_s=2.0,
        ),
    ),
)  # fmt: skip

HOOK_SOCKETS = Hook("sockets", "every socket, with its owner process")
HOOK_UNATTRIBUTED = Hook(
    "unattributed",
    "sockets that no process holds: not yet accepted, orphaned, in TIME_WAIT",
    requires=HOOK_SOCKETS.name,
)
HOOK_OPENED = Hook(
    "opened",
    "when an open connection opened, if nettop was running then",
    ("opened_at",),
    requires=HOOK_SOCKETS.name,
)
HOOK_EVENTS = Hook(
    "events",
    "every connect, accept, close and failure, even of connections that live only between two readings",
    ("opened", "closed", "failed", "reset"),
)
HOOK_ACCEPTS = Hook("accepts", "the owner of an accepted connection, from its accept or first use on",
                    requires=HOOK_EVENTS.name)  # fmt: skip
HOOK_ROUTES = Hook("routes", "connect() calls that fail before sending anything, because there is no route",
                   requires=HOOK_EVENTS.name)  # fmt: skip
HOOK_UDP = Hook("udp", "bytes and messages of UDP sockets", ("messages_sent", "messages_received"))

NOT_LISTED = "(closed, not listed)"
"""Process name in the row that sums up ended connections without their own row."""
NOT_KEPT = "(closed, or without a row)"
"""The same while open sockets have no row either."""
WITHOUT_LISTING = "ends not listed"
WITHOUT_ROW = "sockets without a row"
WITHOUT_GROUP = "groups without a row"
OTHER_GROUPS, ENDED_GROUPS = "(others)", "(ended)"
"""The rows that sum up groups beyond the maximum, and groups without a socket for a while."""
UNATTRIBUTED = "(unattributed)"
"""Process name for a socket without an owner."""
KERNEL_OWNER = "(kernel)"
"""Process name for a socket owned by the kernel, such as a tunnel's or NFS's."""
SEVERAL = "(several)"
"""Process name if several processes are possible."""
HIDDEN_OWNER = "(hidden)"
"""Process name for a process that holds a socket but may not be inspected."""
OUTSIDE = {"processes outside": "not visible from this PID namespace: run nettop on the host"}
"""The gap in a container's PID namespace."""
FOLLOWED_UDP = "followed_udp_"
"""Prefix of the snapshot counts for UDP traffic of followed processes."""
CHILDREN = "children"
"""The gap if children of a followed process are not followed."""
STILL_FOLLOWED = "followed_processes"
"""The snapshot count of followed processes that are alive."""
WITHOUT_ROOT = "owners"
"""The gap if other users' processes may not be inspected."""


def _check_ring_size(size: int, _interval_s: float) -> None:
    """Raise UsageError for a size that the kernel refuses."""
    if size & (size - 1):
        raise UsageError(f"--ring-size {size} is not a power of two", "give a power of two, such as 8M")


# The default has room for 3,400 events: at 70,000 events a second 50 ms, which is how long reading the table may take
# at that rate. The ring's whole mapping, which contains the data twice, counts as memory of the process.
RING_SIZE = Option(
    "ring_size",
    "Size of the kernel's event buffer, a power of two",
    default=1 << 20,
    log_default=8 << 20,
    metavar="SIZE",
    unit="bytes",
    minimum=4 << 10,  # a page
    maximum=1 << 30,
    tables=(EVENTS.name, FAILURES.name, GROUPS.name),
    check=_check_ring_size,
)
MAX_MEMORY = Option(
    "max_memory",
    "Memory that nettop may take, about: sockets beyond it have no row; 0 means a quarter of what is available, for "
    "rows",
    default=0,
    metavar="SIZE",
    unit="bytes",
    minimum=0,
    maximum=1 << 40,
)
GROUP = Option(
    "group",
    "Property to group the sockets by",
    default=GROUPINGS[0],
    metavar="|".join(GROUPINGS),
    tables=(GROUPS.name,),
    key="g",
    steps=GROUPINGS,
    opens=GROUPS.name,
)
COUNT_UDP = Option(
    "udp",
    "Count the bytes and messages of UDP sockets",
    default="on",
    metavar="on|off",
    steps=("on", "off"),
)

LENS = Lens(
    id="connections",
    title="Connections",
    order=1,
    digit="1",
    question="who uses the network, and how well each connection performs",
    tables=(SOCKETS, EVENTS, FAILURES, GROUPS),
    common=(("local", "remote"), ("remote_address",), ("pid",), ("process",)),
    hooks=(HOOK_SOCKETS, HOOK_UNATTRIBUTED, HOOK_OPENED, HOOK_EVENTS, HOOK_ACCEPTS, HOOK_ROUTES, HOOK_UDP),
    names=frozenset(
        {
            OTHER_GROUPS,
            ENDED_GROUPS,
            NO_GROUP,
            UNATTRIBUTED,
            KERNEL_OWNER,
            SEVERAL,
            HIDDEN_OWNER,
            NOT_LISTED,
            NOT_KEPT,
            *STATES.values(),
        }
    ),
    losses={
        "namespaces": "network namespaces that could not be entered: their sockets are missing",
        "processes": "processes that exited before their control group could be read: their rows have no container",
        "events": "events that the kernel skipped, or that did not fit into the ring; totals lack the skipped ones "
        "(their `uncounted`)",
        "connection records": "connections that had no room for a record: their events lack the time of opening",
        WITHOUT_LISTING: f"ended connections beyond the maximum per reading: their counts are only in {NOT_LISTED}",
        WITHOUT_ROW: "sockets without a row of their own, because `--max-memory` has no room for it: their counts are "
        f"only in {NOT_KEPT}",
        WITHOUT_GROUP: f"groups that share the row {OTHER_GROUPS}, at each reading, because too many are in use at "
        "once",
        "followed processes": "children of the command that had no room to be followed",
        "udp messages": "messages of UDP sockets that had no room for an entry, or that the kernel skipped; totals of "
        "the host include the former",
    },
    options=(RING_SIZE, GROUP, COUNT_UDP, MAX_MEMORY),
    counts=(
        Field("connected", Kind.COUNTER, "CONNECTED", "connections opened from here"),
        Field("accepted", Kind.COUNTER, "ACCEPTED", "connections accepted"),
        Field("closed", Kind.COUNTER, "CLOSED", "connections closed"),
        Field("failed", Kind.COUNTER, "FAILED", "connections that never opened"),
        Field(
            "time_wait",
            Kind.GAUGE,
            "TIME_WAIT",
            "TCP sockets in TIME_WAIT, which are not in the sockets table",
        ),
    ),
)
