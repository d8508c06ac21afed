# SPDX-License-Identifier: Apache-2.0
"""The services lens: response times of each service and client, and requests without a response yet."""

from __future__ import annotations

from dataclasses import replace

from nettop.errors import UsageError
from nettop.snapshots.connections import NO_YES
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import (
    NAMESPACE,
    NETNS,
    SUM_ONLY,
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
)

# --- names of numbers ----------------------------------------------------------------------------------------

SERVED, USED = 0, 1
SIDES = {SERVED: "served", USED: "used"}
"""Labels for this machine's side: server or client."""
TCP, UDP = 0, 1
PROTOCOLS = {TCP: "tcp", UDP: "udp"}
UDP_PORTS = (53, 123, 161, 853)
"""UDP ports whose requests are timed by default: DNS, NTP, SNMP, DNS over QUIC."""
DNS_PORT = 53
TIMEOUT_S = 5.0
"""Age at which a UDP request without a response counts as unanswered."""
ALTERNATING, OVERLAPPING, PUSHING = 0, 1, 2
PATTERNS = {ALTERNATING: "alternating", OVERLAPPING: "overlapping", PUSHING: "pushing"}
"""Labels for the order in which requests and responses follow each other."""
MARKED_FROM = 0.05
"""Minimum share of untimeable turns at which a service's response times become unknown."""

NORMAL, SLOWER, STUCK = 0, 1, 2
SPEEDS = {NORMAL: "as usual", SLOWER: "slower", STUCK: "stuck"}
"""Labels for a service compared with its own recent past."""
RECENT_S, USUAL_S = 10.0, 300.0
SLOWER_FROM, SLOWER_LEAST_S, SLOWER_FOR_S = 3.0, 0.01, 3.0
"""A service is slower if its p99 is more than this many times the usual and at least this long: a busy CPU alone delays
by milliseconds. That lasts for SLOWER_FOR_S after a reading whose responses were so slow, as those of a single moment
remain in the p99 of the last RECENT_S seconds."""
SPELL_S = 3600.0
"""Seconds for which a service that has become slower, or silent, is compared with its times before that."""
STUCK_FROM, STUCK_FROM_RECENT, STUCK_LEAST_S = 10.0, 2.0, 1.0
"""A request is stuck if it has waited this many times the usual p99, and at least this long, since its last data: a
stream in one direction is no request that waits. Where responses still arrive, a service is slow, not stuck, until one
has waited twice the recent p99."""

BUCKETS = Buckets(first_bit=10, last_bit=36, divided_by_bits=3)
"""1 µs to 69 s, within 6.3 %."""
CLIENT_BUCKETS = Buckets(first_bit=10, last_bit=36, divided_by_bits=2)
"""Coarser buckets for clients, as there are many: within 12.5 %."""

OTHERS = "(others)"
"""The name of the row shared by all services without their own."""

# --- fields ---------------------------------------------------------------------------------------------------

_ID = Field("id", Kind.KEY, "ID", "number of the row", importance=2)
_SIDE = Field("side", Kind.ENUM, "SIDE", "served: this machine is the server; used: it is a client", importance=90,
              labels=SIDES)  # fmt: skip
_PROCESS = Field("process", Kind.TEXT, "PROCESS", "name of the server process, or of the client",
                 importance=99)  # fmt: skip
_PID = Field("pid", Kind.LABEL, "PID", "its thread group; the one seen last if there are several",
             importance=20)  # fmt: skip
_CGROUP = Field("cgroup", Kind.TEXT, "CGROUP", "its control group", importance=6)
_CONTAINER = Field("container", Kind.TEXT, "CONTAINER", "its container (runtime:name or short id) or systemd unit",
                   importance=30)  # fmt: skip
_PROTOCOL = Field("protocol", Kind.ENUM, "PROTO", "its transport protocol", importance=62,
                  labels=PROTOCOLS)  # fmt: skip
_RESPONSES = Field("responses", Kind.COUNTER, "RESPONSES", "answered requests; each step of a dialogue counts, such as "
                 "100 Continue, a TLS handshake or HTTP/2 SETTINGS", unit="responses", width=9, importance=89,
                 rate_title="RESP/s", former="answers")  # fmt: skip
_RESPONSE = Field("response", Kind.HISTOGRAM, "1 µs TO 1 min", "response times: from the first byte of a request to "
                  "the first byte of its response, at this end", unit="ns", importance=79, buckets=BUCKETS)  # fmt: skip
_QUEUED = Field("queued", Kind.HISTOGRAM, "QUEUED", "time requests waited here before their first byte was read",
                unit="ns", importance=40, buckets=BUCKETS)  # fmt: skip
_SERVICE = Field("service_time", Kind.HISTOGRAM, "SERVICE", "time from that read to the first byte of the response",
                 unit="ns", importance=39, buckets=BUCKETS)  # fmt: skip
_RESPONSE_NS = Field("response_ns", Kind.COUNTER, "WAITED", "sum of response times; its rate is the average number of "
                     "open requests, 100% being one", unit="ns", importance=34, rate_title="CONCURRENCY")  # fmt: skip
_TIMED = Field(
    "timed", Kind.COUNTER, "TIMED", "responses with a known response time", unit="responses", importance=11
)
_WAITING = Field("waiting", Kind.GAUGE, "WAITING", "requests without a response yet", "u4", "requests", 8, 92)
_OLDEST = Field(
    "oldest", Kind.GAUGE, "OLDEST", "age of the oldest request without a response", unit="ns", importance=91
)
_STALLED = Field("stalled", Kind.GAUGE, "STALLED", "the longest time for which a request without a response has had no "
                 "more data; short while a long request is being sent", unit="ns", importance=30)  # fmt: skip
_CONNECTIONS = Field("connections", Kind.GAUGE, "CONNS", "open connections", "u4", "connections")


def _quantiles(part: Field, prefix: str, title: str, importances: tuple[int, ...]) -> tuple[Field, ...]:
    """Return the quantiles of a histogram."""
    of_shares = zip((("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)), importances, strict=True)
    return tuple(
        Field(f"{prefix}{name}", Kind.QUANTILE, f"{title}{name.upper()}",
              f"{'the longest' if share == 1 else f'{share * 100:g} % take at most this'}, within histogram error",
              width=9, importance=importance, parts=(part.name,), quantile=share)
        for (name, share), importance in of_shares
    )  # fmt: skip


def _mean(
    name: str, title: str, text: str, parts: tuple[str, str], *, importance: int, former: str = ""
) -> Field:
    unit = "bytes" if parts[0].endswith("bytes") else "ns"
    return Field(
        name, Kind.RATIO, title, text, unit=unit, width=9, importance=importance, parts=parts, former=former
    )


_SERVICE_OF = ("netns", "port", "process")
_STUCK = "speed=stuck responses_per_s=0 (usual_p99>=0 or recent_p99>=0)"
_NOT_ANSWERED = "{process} {service} has not answered a request for {stalled}; {waiting} waiting"
_WAITS = "{process} has waited {stalled} for a response of {service}; {waiting} waiting"
_USED_DNS = f"protocol=udp port={DNS_PORT} side=used"
_DNS = ("netns", "process", "address", "port")
_SLOW_DNS = ("DNS silent", "DNS slow")
_NOT_READING = (
    *_SLOW_DNS,
    "data unread",
    "accept queue full",
    "never accepts",
    "send queue stuck",
    "peer gone",
)
"""Kinds of findings about connections that leave a request unanswered."""

# --- tables ---------------------------------------------------------------------------------------------------

_NAMED = ("process", "port")
"""Columns that name a service in two spans of time."""

SERVICES = Table(
    name="services",
    fields=(
        _ID,
        _PROCESS,
        _PID,
        _CGROUP,
        _CONTAINER,
        NETNS,
        NAMESPACE,
        _SIDE,
        _PROTOCOL,
        Field("address", Kind.ADDRESS, "ADDRESS", "address of the service; if served, the one it listens on",
              importance=60),
        Field("port", Kind.LABEL, "PORT", "the service's port", importance=60),
        Field("service", Kind.ENDPOINT, "SERVICE", "its address and port; 0.0.0.0 and [::] mean every address of this "
              "machine", importance=98, parts=("address", "port")),
        _RESPONSES,
        _RESPONSE,
        *_quantiles(_RESPONSE, "", "", (89, 70, 97, 71)),
        _QUEUED,
        *_quantiles(_QUEUED, "queued_", "QUEUED ", (48, 46, 80, 45)),
        _SERVICE,
        *_quantiles(_SERVICE, "service_", "SERVICE ", (44, 43, 79, 42)),
        Field("recent_p99", Kind.GAUGE, "P99 10 s", "99 % of the response times of the last 10 seconds are at most "
              "this", unit="ns", importance=68),
        Field("usual_p99", Kind.GAUGE, "P99 5 min", "median of that p99 over the five minutes before, or before it "
              "became slower or stuck, within the last hour", unit="ns", importance=67),
        Field("speed", Kind.ENUM, "SPEED", "slower: the p99 of the last 10 seconds is more than three times the usual "
              f"and 10 ms or more, and so was that of a reading in the last {SLOWER_FOR_S:g}; stuck: a request has "
              "waited more than ten times the usual, more than twice the recent p99, and at least a second since its "
              "last data", importance=66, labels=SPEEDS),
        _RESPONSE_NS,
        _TIMED,
        _mean("response_mean", "MEAN", "mean response time", ("response_ns", "timed"), importance=38),
        _WAITING,
        _OLDEST,
        _STALLED,
        Field("unanswered", Kind.COUNTER, "UNANSWERED", "requests whose connection ended before the response; over "
              f"UDP, those without one within {TIMEOUT_S:g} s or before their socket was closed", unit="requests",
              importance=65, tone="warn", rate_title="UNANSW/s"),
        Field("failed_responses", Kind.COUNTER, "SERVFAIL", "DNS responses over UDP by which the server says that it "
              "failed (SERVFAIL)", unit="responses", importance=61, tone="warn", rate_title="SERVFAIL/s",
              former="failed_answers"),
        Field("missing_names", Kind.COUNTER, "NXDOMAIN", "DNS responses over UDP that say that the name does not exist "
              "(NXDOMAIN)", unit="responses", importance=59, rate_title="NXDOMAIN/s"),
        Field("failed_ratio", Kind.RATIO, "FAILED", "SERVFAIL ÷ responses", importance=16,
              parts=("failed_responses", "responses"), tone="warn"),
        Field("closed", Kind.COUNTER, "CLOSED", "unanswered requests whose connection the service closed",
              unit="requests", importance=64, tone="warn", rate_title="CLOSED/s"),
        Field("failed_connects", Kind.COUNTER, "CONN FAIL", "failed connects: refused, or never answered; an address "
              "that only fails is listed from its third failure on", unit="connects", width=10, importance=63,
              tone="warn", rate_title="CONN FAIL/s"),
        Field("refused", Kind.COUNTER, "REFUSED", "failed connects that were refused", unit="connects", importance=35,
              tone="warn", rate_title="REFUSED/s"),
        Field("unanswered_ns", Kind.COUNTER, "UNANS SUM", "total time that unanswered requests waited", unit="ns",
              importance=10),
        _mean("unanswered_age", "UNANS AVG", "mean time that unanswered requests waited",
              ("unanswered_ns", "unanswered"),
              importance=32),
        Field("request_bytes", Kind.COUNTER, "REQ BYTES", "bytes of requests", unit="bytes", width=9, importance=15),
        Field("response_bytes", Kind.COUNTER, "RESP BYTES", "bytes of complete responses", unit="bytes", width=9,
              importance=15, former="answer_bytes"),
        _mean("request_size", "REQUEST", "mean bytes of a request", ("request_bytes", "timed"),
              importance=28),
        _mean("response_size", "RESPONSE", "mean bytes of a response", ("response_bytes", "timed"), importance=36,
              former="answer_size"),
        Field("transfer_ns", Kind.COUNTER, "SENDING", "total time from the first to the last byte of responses",
              unit="ns", importance=12),
        _mean("transfer_mean", "TRANSFER", "mean time from the first to the last byte of a response",
              ("transfer_ns", "timed"), importance=33),
        _CONNECTIONS,
        Field("overlaps", Kind.COUNTER, "OVERLAPS", "responses that cannot be timed because requests overlapped, or "
              "may have; a burst counts as one", unit="turns", importance=14),
        Field("pushes", Kind.COUNTER, "PUSHES", "messages that the service sent without a request; part of a response "
              "that comes 60 ms after the previous one counts too", unit="messages", importance=13),
        Field("replies", Kind.COUNTER, "REPLIES", "client messages after a push: replies, or requests that cannot be "
              "timed", unit="messages", importance=12),
        Field("pattern", Kind.ENUM, "PATTERN", "overlapping: a request is sent before the previous one is answered, as "
              "in HTTP/2, or may be; pushing: the service sends without a request, as in WebSocket. If one turn in "
              "twenty or more is like that, response times and waiting requests are unknown", importance=69,
              labels=PATTERNS),
    ),
    screen=("process", "service", "protocol", "side", "responses_per_s", "p50", "p99", "max", "queued_p99",
            "service_p99", "response", "waiting", "oldest", "unanswered_per_s", "failed_responses_per_s",
            "failed_connects_per_s", "pattern"),
    text=("process", "pid", "container", "namespace", "side", "protocol", "service", "responses", "p50", "p90", "p99",
          "max", "queued_p99", "service_p99", "waiting", "oldest", "unanswered", "failed_responses", "missing_names",
          "closed", "failed_connects", "connections", "pattern"),
    sort="-p99",
    bar="p99",
    begins_at_zero=True,
    cumulative=True,
    adds_up=False,
    hooks=("calls",),
    rules=(
        Rule(
            "DNS silent",
            f"{_USED_DNS} waiting>0 oldest>=1s responses_per_s=0",
            "{process} gets no response from the DNS server {service}: {waiting} waiting, up to {oldest}",
            "DNS servers that do not answer a process of this host",
            "ask it: dig @{address}; check /etc/resolv.conf, the path and the firewalls",
            by=_DNS,
            after_s=1.0,
            lasts="oldest",
            until_sent=True,
        ),
        Rule(
            "DNS slow",
            f"{_USED_DNS} p50>=500ms",
            "{process} waits {p50} for responses of the DNS server {service}",
            "DNS servers that take half a second or more for most of their responses to a process of this host, again "
            "and again",
            "ask it: dig @{address}; its own servers may be slow, or a first server in /etc/resolv.conf is silent",
            by=_DNS,
            after_s=1.0,
            pause_s=10.0,
            explained_by=("DNS silent",),
        ),
        # Some domains are always broken.
        Rule(
            "DNS failing",
            f"{_USED_DNS} failed_ratio>=10%",
            "the DNS server {service} fails for {process}: {failed_ratio} of the responses are SERVFAIL, "
            "{failed_responses_per_s}/s",
            "DNS servers that say again and again that they failed, in a tenth of their responses or more: their own "
            "servers do not answer, or DNSSEC does not verify the names",
            "dig @{address} NAME, and with +cd, which leaves out DNSSEC; see the log of the server",
            by=_DNS,
            after_s=1.0,
            pause_s=10.0,
        ),
        Rule(
            "stuck service",
            f"side=served {_STUCK}",
            _NOT_ANSWERED,
            "services of this host that used to answer, and have stopped: a request has waited at least a second since "
            "its last data, and more than ten times the usual p99",
            "see what {process} does: its log, its CPU, and the services that it uses (SIDE used)",
            by=_SERVICE_OF,
            after_s=1.0,
            lasts="stalled",
            explained_by=_NOT_READING,
            explained_in_process=("waiting for a service", "connects unanswered", "DNS silent"),
        ),
        Rule(
            "waiting for a service",
            f"side=used {_STUCK}",
            _WAITS,
            "services that a process of this host waits for, though they used to answer: a request has waited at least "
            "a second since its last data, and more than ten times the usual p99",
            "look at the server, and at the path to it (RTT and RETR of the connections)",
            by=_SERVICE_OF,
            after_s=1.0,
            lasts="stalled",
            explained_by=("stuck service", *_NOT_READING),
        ),
        # Such are streams of logs too, and requests for news: BLPOP, long polling, watches.
        Rule(
            "unanswered requests",
            "speed=stuck side=served",
            _NOT_ANSWERED,
            "services of this host with a request that has waited far longer than usual, while others are answered, or "
            "none has been since nettop began to watch; one that holds requests until there is news, or never answers "
            "any, looks the same",
            "see whether {process} answers such requests at all; its log, and the services that it uses (SIDE used)",
            Severity.HINT,
            Certainty.POSSIBLE,
            by=_SERVICE_OF,
            after_s=1.0,
            lasts="stalled",
            explained_by=("stuck service", *_NOT_READING),
        ),
        Rule(
            "long waits",
            "speed=stuck side=used",
            _WAITS,
            "services that have not answered a request of a process of this host for far longer than usual, while "
            "others are answered, or none has been since nettop began to watch; one that holds requests until there is "
            "news, or never answers any, looks the same",
            "see whether the server answers such requests at all; look at the path to it (RTT and RETR)",
            Severity.HINT,
            Certainty.POSSIBLE,
            by=_SERVICE_OF,
            after_s=1.0,
            lasts="stalled",
            explained_by=("stuck service", "waiting for a service", "unanswered requests", *_NOT_READING),
        ),
        Rule(
            "slow service",
            "speed=slower side=served responses_per_s>0",
            "{process} {service} answers in {recent_p99}, {usual_p99} before[; {client} waits for it]",
            "services of this host whose responses are slow again and again: the p99 of the last 10 seconds is more "
            "than three times the usual",
            "QUEUED and SERVICE tell whether requests wait for {process} or in it; see the services that it uses",
            by=_SERVICE_OF,
            after_s=5.0,
            explained_by=("stuck service", *_SLOW_DNS),
            explained_in_process=("waiting for a service", "slow responses", *_SLOW_DNS),
        ),
        # It cannot be compared with its own past yet. Ten responses at least are as slow, so a single report is none.
        Rule(
            "slow from the start",
            "side=served recent_p99>=1s p50>=1s not usual_p99>=0",
            "{process} {service} needs {p50} for half of its responses; its usual time is not known yet",
            "services of this host that take a second or more for half of their responses, while nettop has not "
            "watched them long enough to know their usual times; one that holds requests until there is news looks the "
            "same",
            "QUEUED and SERVICE tell whether requests wait for {process} or in it; see the services that it uses",
            Severity.HINT,
            Certainty.POSSIBLE,
            by=_SERVICE_OF,
            explained_by=("stuck service", *_SLOW_DNS),
        ),
        Rule(
            "slow responses",
            "speed=slower side=used responses_per_s>0",
            "{process} gets responses of {service} in {recent_p99}, {usual_p99} before",
            "services that a process of this host uses, whose responses are slow again and again: the p99 of the last "
            "10 seconds is more than three times the usual",
            "look at the server, and at the path to it (RTT and RETR of the connections)",
            by=_SERVICE_OF,
            after_s=5.0,
            explained_by=("slow service", "stuck service", "waiting for a service", *_SLOW_DNS),
        ),
    ),
    metrics=(
        Metrics(("process", "container", "side", "protocol", "service"),
                ("response", "queued", "service_time", "waiting", "oldest", "unanswered", "request_bytes",
                 "response_bytes", "connections", "overlaps", "pushes", "closed", "failed_connects",
                 "failed_responses", "missing_names"),
                prefix="services", top="service", limit=10,
                edges={"response": (100_000, 10_000_000_000), "queued": SUM_ONLY, "service_time": SUM_ONLY}),
    ),
    measures=(
        *(
            Measure(topic, _NAMED, name, 20_000, f"{who} in {{now}} ({called}), {{before}} before",
                    filter=f"side={side}", is_bad=True)
            for topic, side, who in (
                ("services", "served", "{process} :{port} answers"),
                ("used services", "used", "{process} gets responses of port {port}"),
            )
            for name, called in (("p99", "p99"), ("p50", "median"))
        ),
        Measure("services", _NAMED, "responses", 0.5, "{process} :{port} answers {now} requests/s, {before}/s before",
                filter="side=served"),
        Measure("services", _NAMED, "unanswered", 0.2,
                "{process} :{port} leaves {now} requests/s unanswered, {before}/s before", filter="side=served",
                is_bad=True),
        Measure("used services", _NAMED, "unanswered", 0.2,
                "{process} gets no response of port {port}: {now} requests/s, {before}/s before", filter="side=used",
                is_bad=True),
    ),
)  # fmt: skip

CLIENTS = Table(
    name="clients",
    fields=(
        replace(_ID, help="number made of the service and the client"),
        Field("service", Kind.LABEL, "SERVICE", "the ID of the service", "u8", importance=30, refers=True),
        replace(_PROCESS, help="name of the server process"),
        Field("port", Kind.LABEL, "PORT", "the service's port", importance=90),
        NETNS,
        NAMESPACE,
        Field("client", Kind.ADDRESS, "CLIENT", "address of the client", importance=100),
        replace(_RESPONSES, importance=96),
        replace(_RESPONSE, dtype=CLIENT_BUCKETS.dtype, buckets=CLIENT_BUCKETS),
        *_quantiles(_RESPONSE, "", "", (95, 70, 97, 71)),
        _RESPONSE_NS,
        _mean("response_mean", "MEAN", "mean response time", ("response_ns", "responses"), importance=38),
        _WAITING,
        _OLDEST,
        _CONNECTIONS,
    ),
    screen=("process", "port", "client", "responses_per_s", "p50", "p90", "p99", "max", "response", "waiting", "oldest",
            "connections"),
    text=("process", "port", "namespace", "client", "responses", "p50", "p90", "p99", "max", "waiting", "oldest",
          "connections"),
    sort="-p99",
    bar="p99",
    begins_at_zero=True,
    adds_up=False,
    hooks=("calls",),
    metrics=(),
)  # fmt: skip

_CONNECTION_FIELDS = (
    Field("id", Kind.KEY, "ID", "the kernel's socket cookie, as in connections", width=12, importance=3,
          role=FieldRole.NUMBER),
    Field("service", Kind.LABEL, "SERVICE", "the ID of the service", "u8", importance=4, refers=True),
    _PROCESS,
    replace(_PID, help="its thread group", importance=60),
    _CGROUP,
    _CONTAINER,
    NETNS,
    NAMESPACE,
    _SIDE,
    Field("local_address", Kind.ADDRESS, "LOCAL ADDRESS", "address on this machine", importance=20),
    Field("local_port", Kind.LABEL, "LPORT", "port on this machine", width=6, importance=20),
    Field("remote_address", Kind.ADDRESS, "REMOTE ADDRESS", "address of the peer", importance=20),
    Field("remote_port", Kind.LABEL, "RPORT", "port of the peer", width=6, importance=20),
    Field("local", Kind.ENDPOINT, "LOCAL", "address and port on this machine", importance=85,
          parts=("local_address", "local_port")),
    Field("remote", Kind.ENDPOINT, "REMOTE", "address and port of the peer", importance=95,
          parts=("remote_address", "remote_port")),
)  # fmt: skip
"""The columns that identify a connection."""
_WAITED = Field("waited", Kind.GAUGE, "WAITED", "age of its open request", unit="ns", importance=98)
_SINCE = Field("since", Kind.TIME, "SINCE", "when that request arrived, or was sent", width=27)
_INFERRED = Field("inferred", Kind.ENUM, "INFERRED", "yes: it began before nettop watched, and is inferred from the "
                  "last times of data received and sent", importance=49, labels=NO_YES)  # fmt: skip
_WAS_READ = Field("was_read", Kind.ENUM, "READ", "served: whether the server has read any of it", width=5,
                  importance=94, labels=NO_YES)  # fmt: skip

CONNECTIONS = Table(
    name="connections",
    fields=(
        *_CONNECTION_FIELDS,
        replace(_RESPONSES, importance=97),
        _RESPONSE_NS,
        _mean("response_mean", "MEAN", "mean response time", ("response_ns", "responses"), importance=96),
        Field("queued_ns", Kind.COUNTER, "QUEUED", "total time that answered requests waited here before their first "
              "byte was read", unit="ns", importance=33),
        Field("queued_responses", Kind.COUNTER, "QUEUED RESP", "responses to requests that were seen being read, so "
              "that their time in the queue is known", unit="responses", importance=12,
              former="queued_answers"),
        _mean("queued_mean", "QUEUE AVG", "mean time that answered requests waited here before they were read",
              ("queued_ns", "queued_responses"), importance=48),
        Field("local_isn", Kind.LABEL, "LOCAL ISN", "initial sequence number of this end, from TCP's counts; of the "
              "end that accepted, one more", width=10, importance=2),
        Field("remote_isn", Kind.LABEL, "REMOTE ISN", "initial sequence number of the peer, plus one", importance=2),
        _WAITED,
        _SINCE,
        _WAS_READ,
        _INFERRED,
    ),
    screen=("process", "side", "local", "remote", "responses_per_s", "response_mean", "waited"),
    text=("process", "pid", "side", "local", "remote", "responses", "response_mean", "waited"),
    sort="-waited",
    begins_at_zero=True,
    adds_up=False,
    hooks=("calls",),
    metrics=(),
)  # fmt: skip

WAITING = Table(
    name="waiting",
    fields=(*_CONNECTION_FIELDS, _WAITED, _SINCE, _WAS_READ, _INFERRED),
    screen=("waited", "process", "pid", "side", "was_read", "local", "remote", "since", "inferred"),
    sort="-waited",
    hooks=("calls",),
    metrics=(),
)

# --- hooks ----------------------------------------------------------------------------------------------------

HOOK_CALLS = Hook("calls", "when data is sent, received and read on TCP connections")
HOOK_UNOWNED = Hook(
    "unowned",
    "requests on connections that no process holds: not yet accepted, or closed",
    requires="calls",
    remedy="allow BPF iterators in the security module's policy",
)

HOOK_UDP_REQUESTS = Hook(
    "udp_requests",
    "requests to and responses of UDP services, such as DNS",
    ("failed_responses", "missing_names"),
    requires="calls",
    remedy="mount the control groups: mount -t cgroup2 none /sys/fs/cgroup; in a container, share the host's "
    "(docker run --cgroupns host)",
)

WITHOUT_SLOT, WITHOUT_CLIENT = "services without a row", "clients without a row"
CLIENTS_EVICTED = "clients_evicted"
UNTIMED = "udp requests"
UNLISTED_FAILURES = "unlisted_failed_connects"

# --- options ----------------------------------------------------------------------------------------------------


def parse_ports(text: str) -> list[int]:
    """Parse `PORT,…`. Raise UsageError for a word that is not a port."""
    words = list(filter(None, map(str.strip, text.split(","))))
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word) < 1 << 16):
            raise UsageError(f"--udp-port {word!r} is not a port", "write it like --udp-port 5060")
    return list(map(int, words))


UDP_PORT = Option(
    "udp_port",
    f"Time requests to this UDP port too; repeatable (always {', '.join(map(str, UDP_PORTS))})",
    default="",
    metavar="PORT",
    repeatable=True,
    tables=(SERVICES.name, WAITING.name),
    check=lambda text, _interval_s: parse_ports(text),
)

# --- lens -------------------------------------------------------------------------------------------------------

LENS = Lens(
    id="services",
    title="Services",
    order=7,
    digit="7",
    question="which service is slow, and what waits",
    tables=(SERVICES, CLIENTS, CONNECTIONS, WAITING),
    common=(("service",), ("process",)),
    hooks=(HOOK_CALLS, HOOK_UNOWNED, HOOK_UDP_REQUESTS),
    names=frozenset({OTHERS}),
    options=(UDP_PORT,),
    losses={
        "skipped calls": "calls not seen because a program was already running on that CPU",
        "processes": "processes that exited before their control group could be read: their rows have no container",
        "unwatched": "connections not watched for lack of memory: no number includes them",
        WITHOUT_SLOT: f"services that share the row {OTHERS}, because too many are in use at once",
        UNTIMED: "UDP requests not timed, because too many have no response yet",
        WITHOUT_CLIENT: "connections whose client has no row, because too many are connected at once",
    },
    counts=(
        Field(CLIENTS_EVICTED, Kind.COUNTER, "EVICTED", "clients evicted to make room for others"),
        Field(
            UNLISTED_FAILURES,
            Kind.COUNTER,
            "NOT LISTED",
            "failed connects to addresses that are not listed, because they failed fewer than three times",
        ),
    ),
)
