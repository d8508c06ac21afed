# SPDX-License-Identifier: Apache-2.0
"""The findings lens: what is wrong, who, since when and why, and how near the kernel's limits are."""

from __future__ import annotations

from dataclasses import replace

from nettop.snapshots.connections import FAILURES
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.schema import (
    NAMESPACE,
    NETNS,
    PRESENCE,
    Certainty,
    Field,
    FieldRole,
    Hook,
    Kind,
    Lens,
    Measure,
    Metrics,
    Rule,
    Severity,
    Table,
)

SEVERITY_CODES = {severity: code for code, severity in enumerate(Severity, 1)}
"""Codes of severities in rows, the worst first."""
SEVERITIES = {code: severity.value for severity, code in SEVERITY_CODES.items()}
CERTAINTIES = {number: certainty.value for number, certainty in enumerate(Certainty, 1)}

_NOT_EXPLAINED = "cause=–"

FINDINGS = Table(
    name="findings",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of the kind and of what it is about", importance=2),
        Field("rank", Kind.LABEL, "RANK", "its place among all findings, the worst first", width=4, importance=5),
        Field("severity", Kind.ENUM, "SEVERITY", "problem: something fails, or is slow, now; warning: it does in part, "
              "or will soon; hint: it works, but costs more than it needs to", width=9, importance=90,
              labels=SEVERITIES),
        Field("kind", Kind.TEXT, "KIND", "kind of finding", width=18, importance=70, role=FieldRole.PROSE),
        Field("finding", Kind.TEXT, "FINDING", "what is wrong, in a sentence, with the numbers of the last reading "
              "that showed it", width=96, importance=100, role=FieldRole.PROSE),
        Field("certainty", Kind.ENUM, "SURE", "certain: the numbers say just that; likely: another cause would look "
              "the same, but is rare; possible: other causes look the same", importance=60, labels=CERTAINTIES),
        Field("since", Kind.TIME, "SINCE", "when it was first seen", importance=80),
        Field("lasted", Kind.GAUGE, "FOR", "time from then to when it was last seen", unit="ns", importance=85),
        Field("unseen", Kind.GAUGE, "GONE FOR", "time since it was last seen; a finding is kept for ten seconds",
              unit="ns", importance=40),
        Field("rows", Kind.GAUGE, "ROWS", "rows that show it", "u4", "rows", width=6, importance=30),
        Field("process", Kind.TEXT, "PROCESS", "the process that it is about"),
        Field("pid", Kind.LABEL, "PID", "its thread group", importance=20),
        NETNS,
        NAMESPACE,
        Field("peer", Kind.TEXT, "PEER", "the remote address that it is about, if there is only one", width=16,
              importance=28, role=FieldRole.PROSE),
        Field("port", Kind.LABEL, "PORT", "the port of the service that it is about", "u2", importance=29),
        Field("view", Kind.TEXT, "VIEW", "the lens or table whose rows show it", width=18, importance=25,
              role=FieldRole.PROSE),
        Field("filter", Kind.TEXT, "FILTER", "the filter that selects these rows", width=30, importance=10,
              role=FieldRole.PROSE),
        Field("advice", Kind.TEXT, "WHAT TO TRY", "what to look at or change", width=40, importance=45,
              role=FieldRole.PROSE),
        Field("explains", Kind.TEXT, "EXPLAINS", "other findings that follow from it", width=30, importance=35,
              role=FieldRole.PROSE),
        Field("cause", Kind.LABEL, "CAUSE", "the ID of the finding that this one follows from", "u8", width=6,
              importance=4, refers=True),
    ),
    screen=("severity", "finding", "lasted", "certainty"),
    text=("rank", "severity", "certainty", "kind", "process", "pid", "namespace", "since", "lasted", "rows", "view",
          "finding"),
    sort="rank",
    default_filter=_NOT_EXPLAINED,
    adds_up=False,
    uses=(CONNECTIONS.id, f"{CONNECTIONS.id}.{FAILURES.name}"),
    details=(
        ("what", ("finding", "advice", "explains", "severity", "certainty", "kind")),
        ("when", ("since", "lasted", "unseen")),
        ("who", ("process", "pid", "namespace", "peer", "port")),
        ("evidence", ("view", "filter", "rows")),
        ("by number", ("id", "rank", "cause", "netns")),
    ),
    metrics=(Metrics(("kind", "severity", "process", "namespace", "peer", "port"), rows="finding", prefix="finding",
                     filter=_NOT_EXPLAINED),),
    measures=(
        Measure("findings", ("kind", "process"), PRESENCE, 0.1,
                began="[{process}: ]{kind}, found {now} of the time, {before} before",
                ended="[{process}: ]{kind} no longer found: {now} of the time, {before} before", filter="unseen=0"),
    ),
)  # fmt: skip
"""Rows of `cause` are part of another finding, and not shown by default."""

FAILED = "failed"
"""The count of connections that have failed, as in the snapshots of connections."""

LIMIT_WARN_FROM = 0.8
"""Share of a limit from which a finding warns: some time is left to act."""

FILLING_FROM = 0.5
"""Share of a limit from which a finding says when it will be full."""
FULL_SOON_S = 300
LOCAL_PORTS_TO = "local ports to "
"""The resource that is limited for each destination begins with this."""
_IN_USE = "{resource}: {used} of {limit} in use[ in namespace {namespace}]; once full, {when_full}"

LIMITS = Table(
    name="limits",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of the resource and its namespace", importance=2),
        Field("resource", Kind.TEXT, "RESOURCE", "what is limited", width=36, importance=100, role=FieldRole.RESOURCE),
        NETNS,
        replace(NAMESPACE, width=11),
        Field("used", Kind.GAUGE, "USED", "how much of it is used", width=9, importance=90),
        Field("limit", Kind.GAUGE, "LIMIT", "how much may be used", width=9, importance=89),
        Field("use", Kind.RATIO, "USE", "used ÷ limit", importance=95, parts=("used", "limit")),
        Field("growth", Kind.GAUGE, "GROWS/s", "growth of the use per second in the last minute, if it has grown for "
              "longer than under a steady load, and does not slow down enough to end before the limit", "f8", width=8,
              importance=55),
        Field("full_in", Kind.GAUGE, "FULL IN", "time until it is used up at this growth; unknown if it does not grow",
              unit="ns", importance=93),
        Field("setting", Kind.TEXT, "SETTING", "the sysctl that sets the limit", width=36, importance=60,
              role=FieldRole.DECLARED),
        Field("when_full", Kind.TEXT, "WHEN FULL", "what happens once it is used up", width=40,
              role=FieldRole.DECLARED),
    ),
    screen=("resource", "namespace", "used", "limit", "use", "full_in", "setting"),
    text=("resource", "netns", "namespace", "used", "limit", "use", "full_in", "setting"),
    sort="-use",
    bar="use",
    adds_up=False,
    metrics=(Metrics(("resource", "namespace"), ("used", "limit")),),
    rules=(
        Rule(
            "few local ports left",
            f'resource~"{LOCAL_PORTS_TO}" use>={LIMIT_WARN_FROM:.0%}',
            _IN_USE,
            "a destination with connections from almost every local port, also those in TIME_WAIT",
            "reuse connections (keep-alive, a pool); {setting} widens the range",
            Severity.WARNING,
            by=("resource", "netns"),
            explained_by=("no local port",),
        ),
        Rule(
            "near a limit",
            f'resource!~"{LOCAL_PORTS_TO}" use>={LIMIT_WARN_FROM:.0%}',
            _IN_USE,
            "a resource of the kernel that is almost used up",
            "find out who uses it; {setting} raises the limit",
            Severity.WARNING,
            by=("resource", "netns"),
        ),
        # From there on it is near its limit, however fast it grows.
        Rule(
            "filling up",
            f"use>={FILLING_FROM:.0%} use<{LIMIT_WARN_FROM:.0%} full_in<={FULL_SOON_S}s",
            "{resource}: {used} of {limit} in use and {growth} more each second[ in namespace {namespace}]: full in "
            "{full_in}; then {when_full}",
            "a resource of the kernel whose use grows all the time, so that it is used up within minutes",
            "find out who uses more and more of it; {setting} raises the limit",
            Severity.WARNING,
            Certainty.LIKELY,
            by=("resource", "netns"),
        ),
    ),
)  # fmt: skip

_INTERRUPTED = "[; {queue} (IRQ {irq}) interrupts it]"

CPUS = Table(
    name="cpus",
    fields=(
        Field("id", Kind.KEY, "ID", "number of the CPU", width=4, importance=2, role=FieldRole.NUMBER),
        Field("cpu", Kind.LABEL, "CPU", "number of the CPU", importance=100),
        Field("softirq_ns", Kind.COUNTER, "SOFTIRQ", "time in softirqs, in the kernel's ticks", unit="ns",
              importance=90),
        Field("elsewhere_ns", Kind.COUNTER, "OTHERS", "mean time of the other CPUs in softirqs", unit="ns",
              importance=80),
        Field("processed", Kind.COUNTER, "PACKETS", "packets received from devices and queues", unit="packets",
              importance=70),
        Field("squeezed", Kind.COUNTER, "SQUEEZED", "times that the softirq stopped with packets left "
              "(net.core.netdev_budget)", unit="times", width=9, importance=60, tone="warn"),
        Field("dropped", Kind.COUNTER, "DROPPED", "packets dropped because the CPU's backlog was full "
              "(net.core.netdev_max_backlog)", unit="packets", importance=65, tone="warn"),
        Field("irq", Kind.LABEL, "IRQ", "number of the interrupt that is most frequent on the CPU among those of "
              "network devices (PCI); unknown while nothing is found on any CPU", importance=25),
        Field("queue", Kind.TEXT, "QUEUE", "its name, by which the driver tells the queue", width=18, importance=30,
              role=FieldRole.INTERFACE),
    ),
    screen=("cpu", "softirq_ns_per_s", "elsewhere_ns_per_s", "processed_per_s", "squeezed_per_s", "dropped_per_s",
            "irq", "queue"),
    text=("cpu", "softirq_ns", "processed", "squeezed", "dropped", "irq", "queue"),
    sort="-softirq_ns_per_s",
    adds_up=False,
    metrics=(),
    rules=(
        Rule(
            "backlog drops",
            "dropped_per_s>0",
            "CPU {cpu} drops {dropped_per_s} received packets/s: its backlog is full" + _INTERRUPTED,
            "CPUs that receive more packets than they can process",
            "spread the packets over more CPUs (RSS: ethtool -X, RPS: rps_cpus); net.core.netdev_max_backlog only "
            "helps against bursts",
            by=("cpu",),
        ),
        Rule(
            "one CPU saturated",
            "softirq_ns_per_s>=80% elsewhere_ns_per_s<40%",
            "CPU {cpu} spends {softirq_ns_per_s} of its time in softirqs, the others {elsewhere_ns_per_s}"
            + _INTERRUPTED,
            "one CPU that handles most of the network's work, while others are idle",
            "spread the interface's queues over the CPUs (/proc/interrupts, irqbalance, ethtool -l), or its packets "
            "(RPS: rps_cpus)",
            by=("cpu",),
            min_interval_s=1.0,
            after_s=1.0,
        ),
        Rule(
            "squeezed",
            "squeezed_per_s>=100",
            "CPU {cpu} leaves received packets waiting {squeezed_per_s} times/s" + _INTERRUPTED,
            "CPUs whose softirq uses up its budget, so that packets wait for the next one",
            "spread the packets over more CPUs, or raise net.core.netdev_budget",
            Severity.WARNING,
            by=("cpu",),
            after_s=2.0,
            explained_by=("one CPU saturated", "backlog drops"),
        ),
    ),
)  # fmt: skip

_WHERE = "in table {table}, chain {chain}[ ({comment})][ of namespace {namespace}]"

_BETWEEN_RETRANSMISSIONS_S = 10.0
"""Nothing else may arrive of what does not say when it last sent something, such as connects that failed."""

FIREWALL = Table(
    name="firewall",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of the namespace, family, table, chain and handle", importance=2),
        NETNS,
        NAMESPACE,
        Field("family", Kind.TEXT, "FAMILY", "family of the table, as for nft", width=6, importance=60,
              role=FieldRole.RULESET),
        Field("table", Kind.TEXT, "TABLE", "table of the rule", width=10, importance=90, role=FieldRole.RULESET),
        Field("chain", Kind.TEXT, "CHAIN", "chain of the rule", width=16, importance=95, role=FieldRole.RULESET),
        Field("hook", Kind.TEXT, "HOOK", "where the kernel evaluates the chain; unknown if other chains jump to it",
              width=11, importance=55, role=FieldRole.RULESET),
        Field("handle", Kind.LABEL, "HANDLE", "number of the rule, as nft -a shows it; unknown for a chain's policy",
              "u8", role=FieldRole.NUMBER),
        Field("action", Kind.ENUM, "ACTION", "what happens to the packets", importance=100,
              labels={1: "drop", 2: "reject"}),
        Field("affects", Kind.ENUM, "AFFECTS", "the packets that it is for: all that reach it, some, or those to a "
              "port", importance=70, labels={1: "all", 2: "some", 3: "port"}),
        Field("protocol", Kind.TEXT, "PROTO", "the transport protocol that it is for", width=5, importance=40,
              role=FieldRole.DECLARED),
        Field("port", Kind.LABEL, "PORT", "the destination port that it is for, if it is a single one", width=5,
              importance=85),
        Field("process", Kind.TEXT, "PROCESS", "the process that has this port in the rule's namespace", width=15,
              importance=75),
        Field("pid", Kind.LABEL, "PID", "its process ID", importance=20),
        Field("comment", Kind.TEXT, "COMMENT", "comment of the rule; policy for a chain's policy", width=24,
              importance=80, role=FieldRole.RULESET),
        Field("counted", Kind.ENUM, "COUNTED", "whether it has a counter behind its conditions, which shows that it "
              "matches", importance=45, labels={1: "no", 2: "yes"}),
        Field("packets", Kind.COUNTER, "PACKETS", "packets that it dropped or rejected; unknown without a counter",
              unit="packets", importance=92, rate_title="PKTS/s"),
        Field("bytes", Kind.COUNTER, "BYTES", "bytes of these packets", unit="bytes", width=9, importance=30),
    ),
    screen=("action", "table", "chain", "affects", "protocol", "port", "process", "packets_per_s", "packets",
            "namespace", "comment"),
    text=("netns", "namespace", "family", "table", "chain", "hook", "handle", "action", "affects", "protocol", "port",
          "process", "pid", "counted", "packets", "bytes", "comment"),
    sort="-packets_per_s",
    adds_up=False,
    uses=(CONNECTIONS.id,),
    metrics=(),
    rules=(
        Rule(
            "firewall rule drops",
            "affects=port packets_per_s>0",
            "nftables {action}s {packets_per_s} packets/s for[ {process}] :{port} " + _WHERE,
            "a rule for just the port of another finding, while its counter grows",
            "nft -a list chain {family} {table} {chain}: change or delete the rule, or accept the packets before it",
            Severity.WARNING,
            by=("netns", "action", "port", "table", "chain"),
            pause_s=_BETWEEN_RETRANSMISSIONS_S,
            until_sent=True,
            only_explains=True,
            proof=("findings.firewall", "packets>0"),
        ),
        Rule(
            "firewall drops others",
            "affects!=port packets_per_s>0",
            "nftables {action}s {packets_per_s} packets/s " + _WHERE,
            "a rule or policy for all packets, or for some that nettop does not decode, while its counter grows",
            "accept the port before the end of the chain; nft -a list chain {family} {table} {chain}",
            Severity.WARNING,
            Certainty.LIKELY,
            by=("netns", "action"),
            pause_s=_BETWEEN_RETRANSMISSIONS_S,
            until_sent=True,
            only_explains=True,
            proof=("findings.firewall", "packets>0"),
        ),
        Rule(
            "firewall rule may drop",
            "affects=port counted=no",
            "nftables {action}s packets for[ {process}] :{port}, without counting them, " + _WHERE,
            "a rule for just the port of another finding; it has no counter that would show whether it is the one",
            "add `counter` to the rule: nft -a list chain {family} {table} {chain}",
            Severity.WARNING,
            Certainty.POSSIBLE,
            by=("netns", "action", "port", "table", "chain"),
            only_explains=True,
        ),
        Rule(
            "firewall may drop others",
            "affects=all counted=no",
            "nftables {action}s what no rule accepted, without counting it, " + _WHERE,
            "a policy, or a rule without conditions; it has no counter that would show whether it is the one",
            "accept the port before the end of the chain, or end it with `counter drop` to be sure; "
            "nft -a list chain {family} {table} {chain}",
            Severity.WARNING,
            Certainty.POSSIBLE,
            by=("netns", "action"),
            only_explains=True,
        ),
    ),
)  # fmt: skip
"""The rules of a healthy host drop packets all the time: they only explain findings about ports that are in use."""

LATE = "readings skipped"
"""What is missing if nettop is too slow for its interval."""

LOSSES = Table(
    name="losses",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of the lens and what is missing", importance=2),
        Field("lens", Kind.TEXT, "LENS", "the lens whose numbers are too low", importance=100, role=FieldRole.DECLARED),
        Field("what", Kind.TEXT, "MISSING", "what is missing, by the name that counts it", width=24, importance=95,
              role=FieldRole.DECLARED),
        Field("lost", Kind.COUNTER, "LOST", "how much is missing since the lens was attached", unit="losses",
              importance=90, tone="warn"),
        Field("meaning", Kind.TEXT, "MEANING", "what was lost, and why", width=60, importance=80,
              role=FieldRole.DECLARED),
    ),
    screen=("lens", "what", "lost_per_s", "lost", "meaning"),
    sort="-lost_per_s",
    adds_up=False,
    metrics=(),
    rules=(
        # A few of the hundred thousand calls per second of a busy host are always missing.
        Rule(
            "nettop loses data",
            "lost_per_s>=10",
            "nettop loses {lost_per_s}/s in {lens}: {meaning}",
            "numbers of nettop itself that are too low: a table was full, or a program of nettop was interrupted by "
            "itself; it says nothing about the host",
            "nettop --view self shows what nettop costs, and docs/costs-and-limits.md what fits into its tables",
            Severity.HINT,
            by=("lens", "what"),
            after_s=2.0,
        ),
        Rule(
            "nettop is late",
            f'what="{LATE}" lost_per_s>0',
            "nettop skips {lost_per_s} readings/s: one takes longer than the interval",
            "nettop itself is too slow for its interval: nothing is left out of totals, but short peaks are averaged, "
            "and findings come later",
            "a longer --interval, fewer lenses, or more CPU time for nettop; nettop --view self shows what takes so "
            "long",
            Severity.HINT,
            after_s=3.0,
        ),
    ),
)  # fmt: skip

HOOK_FIREWALL = Hook("firewall", "the nftables rules that drop or reject packets, for the screens, check, record and "
                     "the views of findings")  # fmt: skip

LENS = Lens(
    id="findings",
    title="Findings",
    order=10,
    digit="0",
    question="what is wrong, who, since when and why",
    tables=(FINDINGS, LIMITS, CPUS, FIREWALL, LOSSES),
    hooks=(HOOK_FIREWALL,),
    losses={
        "namespaces": "network namespaces that could not be entered: their counters and limits are missing",
        "firewall": "network namespaces whose nftables rules could not be read, or not all of them",
        LATE: "readings of all lenses, because the one before took too long",
    },
)
