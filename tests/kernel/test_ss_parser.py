# SPDX-License-Identifier: Apache-2.0
"""The oracle's parser reads real lines of ss (iproute2 6.1) correctly."""

import pytest

from .ss import Socket, delivery_rate, endpoint, expected, parse

ESTABLISHED = (
    "ESTAB 0      0      10.81.3.4:42551 10.82.0.2:5000 ino:190090 sk:167cd cgroup:unreachable:1 <-> "
    "skmem:(r0,rb131072,t0,tb82944,f0,w0,o0,bl0,d3) ts sack bbr wscale:10,10 rto:12 rtt:0.298/0.415 mss:1448 pmtu:1500 "
    "rcvmss:536 advmss:1448 cwnd:37 ssthresh:138 bytes_sent:115931 bytes_retrans:15928 bytes_acked:100004 segs_out:83 "
    "segs_in:56 data_segs_out:81 bbr:(bw:827428176bps,mrtt:0.014,pacing_gain:2.88672,cwnd_gain:2.88672) "
    "send 1265478992bps lastsnd:376 lastrcv:376 lastack:376 pacing_rate 2964657928bps delivery_rate 827428568bps "
    "delivered:71 retrans:0/11 app_limited rcv_space:14480 rcv_ssthresh:64088 minrtt:0.003 snd_wnd:68608"
)
CLOSE_WAIT = (
    "CLOSE-WAIT 10      0      [::ffff:10.82.0.2]:5000 [::ffff:10.81.3.4]:42551 "
    'users:(("a b) (c",pid=5300,fd=4),("python3",pid=77,fd=9)) timer:(on,200ms,0) uid:33 ino:190077 sk:167cf '
    "cgroup:unreachable:1 --> skmem:(r1841,rb131072,t0,tb69120,f2255,w0,o0,bl0,d0) ts sack bbr wscale:10,10 rto:204 "
    "rtt:0.136/0.068 ato:40 mss:1448 pmtu:1500 rcvmss:1009 advmss:1448 cwnd:10 bytes_received:1010 segs_out:1 "
    "segs_in:3 data_segs_in:1 delivered:1 app_limited rcv_space:14480 minrtt:0.136 snd_wnd:64512"
)
LISTEN = (
    'LISTEN 0      7      *:5000   *:*     users:(("python3",pid=5300,fd=3)) ino:190076 sk:167ce '
    "cgroup:unreachable:1 <-> skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0) bbr cwnd:10"
)


def test_counters_of_an_established_line() -> None:
    """Every counter of the line is read, in base units."""
    row = parse(ESTABLISHED)
    assert (row.state, row.cookie, row.inode, row.uid, row.drops) == ("ESTABLISHED", 0x167CD, 190090, 0, 3)
    assert (row.local, row.remote) == (("10.81.3.4", 42551), ("10.82.0.2", 5000))
    assert (row.rtt_us, row.rtt_var_us, row.min_rtt_us, row.retransmits) == (298, 415, 3, 11)
    assert row.delivery_rate == 827428568 / 8
    assert row.counters == {
        "bytes_sent": 115931,
        "bytes_retrans": 15928,
        "bytes_acked": 100004,
        "segs_out": 83,
        "segs_in": 56,
        "data_segs_out": 81,
        "cwnd": 37,
        "mss": 1448,
    }


def test_payload_of_an_established_line() -> None:
    """Payload is the bytes sent minus the retransmitted bytes."""
    wanted = expected(parse(ESTABLISHED))
    assert (wanted["bytes_sent"], wanted["bytes_acked"], wanted["bytes_in_flight"]) == (100_003, 100_003, 0)


def test_holders_survive_a_hostile_process_name() -> None:
    """Brackets and blanks in a process name do not shift the columns after it."""
    row = parse(CLOSE_WAIT)
    assert row.holders == ((5300, 4), (77, 9))
    assert (row.uid, row.inode, row.state) == (33, 190077, "CLOSE_WAIT")


def test_received_fin_is_not_payload() -> None:
    """In CLOSE_WAIT one byte of bytes_received is the FIN."""
    wanted = expected(parse(CLOSE_WAIT))
    assert (wanted["bytes_received"], wanted["receive_queue"], wanted["family"]) == (1009, 10, "IPv4")


@pytest.mark.parametrize(
    ("state", "send_queue", "notsent", "acked"),
    [
        ("ESTABLISHED", 0, 0, 1000),
        ("ESTABLISHED", 300, 0, 700),
        ("ESTABLISHED", 300, 100, 800),
        ("FIN_WAIT1", 1, 0, 1000),
        ("FIN_WAIT1", 301, 0, 700),
        ("FIN_WAIT1", 301, 101, 800),
        ("LAST_ACK", 1, 0, 1000),
    ],
)
def test_acknowledged_payload(state: str, send_queue: int, notsent: int, acked: int) -> None:
    """A FIN in flight is not payload; an unsent one is not in flight."""
    row = Socket(
        state,
        0,
        send_queue,
        ("10.0.0.1", 1),
        ("10.0.0.2", 2),
        1,
        counters={"bytes_sent": 1000, "notsent": notsent},
    )
    assert expected(row)["bytes_acked"] == acked


def test_listener() -> None:
    """A listener's queue columns are its backlog and the backlog's limit."""
    row = parse(LISTEN)
    assert (row.receive_queue, row.send_queue, row.local, row.remote) == (0, 7, ("::", 5000), ("::", 0))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.1.2.3:80", ("10.1.2.3", 80)),
        ("0.0.0.0:*", ("0.0.0.0", 0)),
        ("[fd82::5]:443", ("fd82::5", 443)),
        ("[::ffff:10.1.2.3]:80", ("10.1.2.3", 80)),
        ("[fe80::1]%veth1:5", ("fe80::1", 5)),
        ("*:22", ("::", 22)),
        ("127.0.0.53%lo:53", ("127.0.0.53", 53)),
    ],
)
def test_endpoints(text: str, address: tuple[str, int]) -> None:
    """Addresses are in nettop's form."""
    assert endpoint(text) == address


def test_no_delivery_rate() -> None:
    """A socket that has delivered nothing has no rate yet, whatever its pacing rate."""
    assert delivery_rate("pacing_rate 2434215464bps delivered:1") is None
