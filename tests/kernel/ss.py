# SPDX-License-Identifier: Apache-2.0
"""The oracle `ss`: run `ss -tinem`, parse its lines, and derive nettop's expected values.

Numbers are in base units: ss's milliseconds become microseconds, its bits per second bytes per second.
"""

import ipaddress
import re
import subprocess
from dataclasses import dataclass, field
from typing import Any

from .lab import Namespace

STATES = {
    "ESTAB": "ESTABLISHED",
    "SYN-SENT": "SYN_SENT",
    "SYN-RECV": "SYN_RECV",
    "FIN-WAIT-1": "FIN_WAIT1",
    "FIN-WAIT-2": "FIN_WAIT2",
    "TIME-WAIT": "TIME_WAIT",
    "UNCONN": "CLOSE",
    "CLOSE-WAIT": "CLOSE_WAIT",
    "LAST-ACK": "LAST_ACK",
    "LISTEN": "LISTEN",
    "CLOSING": "CLOSING",
}
FIN_ARRIVED = ("CLOSE_WAIT", "LAST_ACK", "CLOSING")
FIN_QUEUED = ("FIN_WAIT1", "LAST_ACK", "CLOSING")
COUNTERS = (
    "bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received", "segs_out", "segs_in", "data_segs_out",
    "data_segs_in", "unacked", "notsent", "cwnd", "mss",
)  # fmt: skip
HEAD = re.compile(
    r"(?:(?:tcp|udp)\s+)?(?P<state>[A-Z0-9-]+)\s+(?P<receive>\d+)\s+(?P<send>\d+)\s+"
    r"(?P<local>\S+)\s+(?P<remote>\S+)\s*(?P<rest>.*)",
    re.DOTALL,
)
USERS = re.compile(r"users:\((?P<list>.*?\))\)(?=\s|$)", re.DOTALL)
HOLDER = re.compile(r"pid=(\d+),fd=(\d+)\)")


@dataclass(frozen=True)
class Socket:
    """One line of ss. A counter that ss leaves out is zero; a missing round-trip time is None."""

    state: str
    receive_queue: int
    send_queue: int
    local: tuple[str, int]
    remote: tuple[str, int]
    cookie: int
    inode: int = 0
    uid: int = 0
    holders: tuple[tuple[int, int], ...] = ()
    rtt_us: float | None = None
    rtt_var_us: float | None = None
    min_rtt_us: float | None = None
    retransmits: int = 0
    delivery_rate: float | None = None
    drops: int = 0
    counters: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """Return a counter by ss's name; 0 if ss left it out."""
        return self.counters.get(name, 0)


def run(namespace: Namespace | None, *options: str) -> str:
    """Run ss for sockets in all states: one per line, numeric, without a header."""
    where = ["-N", namespace.name] if namespace else []
    done = subprocess.run(
        ["ss", *where, "-inemOHa", *options],
        capture_output=True,
        text=True,
        check=True,
        errors="surrogateescape",
    )
    return done.stdout


def sockets(namespace: Namespace | None, *options: str) -> dict[int, Socket]:
    """Return ss's sockets of that namespace (`-t` by default) by cookie."""
    rows = [parse(line) for line in run(namespace, *(options or ("-t",))).splitlines() if line.strip()]
    return {row.cookie: row for row in rows}


def parse(line: str) -> Socket:
    """Return one line of `ss -inemO[p]H`."""
    head = HEAD.match(line)
    assert head, f"not a line of ss: {line!r}"
    users, rest = USERS.search(head["rest"]), USERS.sub("", head["rest"])
    words = dict(word.split(":", 1) for word in rest.split() if ":" in word)
    rtt, _, rtt_var = words.get("rtt", "").partition("/")
    return Socket(
        state=STATES[head["state"]],
        receive_queue=int(head["receive"]),
        send_queue=int(head["send"]),
        local=endpoint(head["local"]),
        remote=endpoint(head["remote"]),
        cookie=int(words["sk"], 16),
        inode=int(words.get("ino", 0)),
        uid=int(words.get("uid", 0)),
        holders=tuple((int(pid), int(fd)) for pid, fd in HOLDER.findall(users["list"] if users else "")),
        rtt_us=microseconds(rtt),
        rtt_var_us=microseconds(rtt_var),
        min_rtt_us=microseconds(words.get("minrtt", "")),
        retransmits=int(words.get("retrans", "0/0").partition("/")[2]),
        delivery_rate=delivery_rate(rest),
        drops=int(re.search(r"skmem:\(.*,d(\d+)\)", rest)[1]) if "skmem:" in rest else 0,  # type: ignore[index]
        counters={name: int(words[name]) for name in COUNTERS if words.get(name, "").isdigit()},
    )


def endpoint(text: str) -> tuple[str, int]:
    """Return (address, port) in nettop's form: no brackets, no zone, IPv4 for a mapped address, :: for *."""
    address, _, port = text.rpartition(":")
    address = re.sub(r"%[^\]]*", "", address).strip("[]")
    parsed: Any = ipaddress.ip_address("::" if address == "*" else address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return str(parsed), 0 if port == "*" else int(port)


def microseconds(milliseconds: str) -> float | None:
    """Parse ss's milliseconds: six significant digits, so exact below one second."""
    return round(float(milliseconds) * 1000, 3) if milliseconds else None


def as_printed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of nettop with its times rounded as ss prints them."""
    times = {name: row[name] for name in ("rtt_us", "rtt_var_us", "rtt_min_us") if row[name] is not None}
    return {**row, **{name: microseconds(f"{value / 1000:g}") for name, value in times.items()}}


def delivery_rate(rest: str) -> float | None:
    """Return bytes per second; None if ss prints none because nothing was delivered yet."""
    match = re.search(r"\bdelivery_rate (\d+)bps", rest)
    return int(match[1]) / 8 if match else None


def expected(row: Socket) -> dict[str, Any]:
    """Return nettop's fields that ss knows, from ss's own numbers, for an established or closing TCP socket.

    Payload needs three corrections: bytes_sent counts retransmitted bytes again, a received FIN counts as one
    byte, and a sent FIN takes one byte of the queue until it is acknowledged. ss's Send-Q is write_seq − snd_una,
    and its notsent is write_seq − snd_nxt.
    """
    in_flight = row.send_queue - row.count("notsent")
    fin_in_flight = row.state in FIN_QUEUED and in_flight > 0 and row.count("notsent") == 0
    sent = row.count("bytes_sent") - row.count("bytes_retrans")
    return {
        "id": row.cookie,
        "protocol": "tcp",
        "state": row.state,
        "uid": row.uid,
        "family": "IPv6" if ":" in row.local[0] else "IPv4",
        "local_address": row.local[0],
        "local_port": row.local[1],
        "remote_address": row.remote[0],
        "remote_port": row.remote[1],
        "bytes_sent": sent,
        "bytes_acked": max(sent - in_flight + fin_in_flight, 0),
        "bytes_received": row.count("bytes_received") - (row.state in FIN_ARRIVED),
        "bytes_in_flight": in_flight,
        "send_queue": row.send_queue,
        "receive_queue": row.receive_queue,
        "packets_sent": row.count("segs_out"),
        "packets_received": row.count("segs_in"),
        "data_packets_sent": row.count("data_segs_out"),
        "retransmits": row.retransmits,
        "rtt_us": row.rtt_us,
        "rtt_var_us": row.rtt_var_us,
        "rtt_min_us": row.min_rtt_us,
        "cwnd": row.count("cwnd"),
        "mss": row.count("mss"),
        "drops": row.drops,
        "delivery_rate": row.delivery_rate,
    }
