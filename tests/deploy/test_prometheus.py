# SPDX-License-Identifier: Apache-2.0
"""The Prometheus configuration: promtool accepts it, names exist, and alerts are tested around their thresholds."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from nettop.query.filter import parse_filter
from nettop.serve.metrics.series import EVICTED, OTHERS
from nettop.snapshots import bandwidth, collector, connections, cpu, drops, find_table, findings, lenses
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import NO_GROUP, Kind, Spread, Table

from .tools import CHECKOUT, DEPLOY, debian_package

PROMETHEUS = DEPLOY / "prometheus"
ALERTS, RECORDING = PROMETHEUS / "rules/alerts.yml", PROMETHEUS / "rules/recording.yml"
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
STATIC, KUBERNETES = "prometheus.yml", "kubernetes.yml"
OF_TARGETS = {"job", "instance"}
SEVERITIES = {"critical", "warning", "info"}

Rule = dict[str, Any]


@cache
def promtool(suite: str) -> Path:
    """Return Debian's promtool; bookworm's was built without Kubernetes service discovery."""
    package = {"bookworm": "prometheus", "trixie": "promtool"}[suite]
    return debian_package(package, suite) / "usr/bin/promtool"


def run(suite: str, *words: object) -> str:
    """Run promtool, which must succeed, and return its output."""
    done = subprocess.run([promtool(suite), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules_in(path: Path) -> list[Rule]:
    """Return the rules in a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, Rule]:
    """Return the alerts by name."""
    return {rule["alert"]: rule for rule in rules_in(ALERTS)}


NOT_FOR_LACK_OF_ROOM = {
    "connections": {"namespaces", "processes", "followed processes"},
    "cpu": {"recursion", "ticks", "walks", "collisions", "cpus"},
    "bandwidth": {"unseen", "refused", "recursion", "namespaces"},
    "latency": {"skipped"},
    "drops": {"recursion", "namespaces", "devices"},
    "services": {"skipped calls", "processes"},
    "findings": {"namespaces", "firewall", "readings skipped"},
}
"""Losses by lens that do not mean that a table was full."""


def test_every_table_that_may_be_full_has_an_alert() -> None:
    """The alerts on nettop itself cover every loss caused by a full table."""
    exprs = alerts()["NettopLosingData"]["expr"] + alerts()["NettopTableFull"]["expr"]
    named = {what for words in re.findall(r'what=~?"([^"]+)"', exprs) for what in words.split("|")}
    assert named == {
        name for lens in lenses() for name in lens.losses.keys() - NOT_FOR_LACK_OF_ROOM.get(lens.id, set())
    }


# --- promtool -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "name"), [("bookworm", STATIC), ("trixie", STATIC), ("trixie", KUBERNETES)]
)
def test_promtool_takes_the_configuration(suite: str, name: str, tmp_path: Path) -> None:
    """promtool accepts the configuration and all files that it names, once the token exists."""
    folder = tmp_path / "prometheus"
    shutil.copytree(PROMETHEUS, folder)
    token = folder / "token"
    token.write_text("secret")
    config = folder / name
    text, tokens = re.subn(r"credentials_file: .*", f"credentials_file: {token}", config.read_text())
    config.write_text(text)
    assert tokens == 1
    assert "2 rule files found" in run(suite, "check", "config", "--lint=all", "--lint-fatal", config)


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_promtool_takes_the_rules(suite: str) -> None:
    """promtool accepts the rules, and finds no duplicates."""
    run(suite, "check", "rules", "--lint=all", "--lint-fatal", ALERTS, RECORDING)


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_unit_tests_pass(suite: str) -> None:
    """Alerts fire and stay silent as the unit tests expect."""
    run(suite, "test", "rules", *UNIT_TESTS)


def test_every_alert_is_seen_firing_and_silent() -> None:
    """The unit tests see every alert both firing and silent."""
    tried: dict[str, set[bool]] = {name: set() for name in alerts()}
    for path in UNIT_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                tried[case["alertname"]].add(bool(case["exp_alerts"]))
    assert tried == {name: {True, False} for name in alerts()}


# --- thresholds -------------------------------------------------------------------------------------------------

THRESHOLD = re.compile(r"(?<=> )(?!0\b(?!\.))[\d.]+|[\d.]+(?= \*)")
"""Matches numbers that values are compared with or scaled by, except comparison with 0."""


# --- names ------------------------------------------------------------------------------------------------------

SELECTOR = re.compile(r"([a-z_]+:[a-z0-9_:]+|nettop_[a-z0-9_]+|\bup\b)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r"""(\w+)\s*(?:=~|!~|!=|=)\s*["']([^"']*)["']""")
ROW = re.compile(r"^\| `(nettop_\w+)` \|([^|]*)\|", re.MULTILINE)


def exposed() -> dict[str, set[str]]:
    """Return the exposed metrics with their labels, from the generated document."""
    text = (CHECKOUT / "docs/reference/metrics.md").read_text()
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in ROW.findall(text)}


def enum(table: Table, name: str) -> set[str]:
    """Return the values of an enum field."""
    return set(map(str, table.by_name[name].labels.values()))


def spread(table: Table) -> dict[str, set[str]]:
    """Return the labels whose values are a table's columns, with these values."""
    values = [value for metrics in table.metrics or () for value in metrics.values]
    return {value.label: set(value.columns) for value in values if isinstance(value, Spread)}


@cache
def label_values() -> list[tuple[str, str, set[str]]]:
    """Return prefixes of metric names, with a label and its possible values."""
    unnamed = {OTHERS, EVICTED, NO_GROUP}
    served = (*lenses(), SELF)
    itself = {
        "lens": {lens.id for lens in served},
        "what": {name for lens in served for name in lens.losses},
        "hook": {hook.name for lens in served for hook in lens.hooks},
        "mechanism": {NOT_AVAILABLE},
    }
    counters = {*drops.OF_NAMESPACES, *drops.OF_DEVICES, *drops.OF_CPUS}
    return [
        ("nettop_connections_failures", "reason", enum(connections.FAILURES, "reason")),
        ("nettop_connections_by_", "port", unnamed),
        ("nettop_connections_", "protocol", set(connections.PROTOCOLS.values())),
        ("nettop_drops_packets", "reason", {*drops.REASONS, *unnamed}),
        ("nettop_drops_packets", "severity", {*enum(drops.PACKETS, "severity"), *unnamed}),
        ("nettop_drops_by_name", "name", {*counters, *unnamed}),
        ("nettop_finding", "severity", {*enum(findings.FINDINGS, "severity"), *unnamed}),
        ("nettop_bandwidth_", "backing", enum(bandwidth.INTERFACES, "backing")),
        ("nettop_flows_", "protocol", enum(collector.EXPORTERS, "protocol")),
        *(("nettop_cpu_", label, values) for label, values in spread(cpu.CPUS).items()),
        *(("nettop_lost", label, values) for label, values in itself.items()),
        *(("nettop_hook_info", label, values) for label, values in itself.items()),
        ("nettop_connections_", "direction", {"sent", "received"}),
        ("nettop_bandwidth_", "direction", {"sent", "received"}),
    ]


def origins(name: str, recorded: dict[str, str]) -> set[str]:
    """Return the exposed metrics that a metric is derived from."""
    if name not in recorded:
        return {name}
    return {origin for part, _ in SELECTOR.findall(recorded[name]) for origin in origins(part, recorded)}


def texts(rule: Rule) -> Iterator[str]:
    """Yield the parts of a rule that name metrics."""
    yield rule["expr"]
    yield from re.findall(r"\{\{ range printf `([^`]*)`", rule.get("annotations", {}).get("description", ""))


@pytest.mark.parametrize(
    "rule", [*rules_in(RECORDING), *rules_in(ALERTS)], ids=lambda r: next(iter(r.values()))
)
def test_metrics_and_labels_exist(rule: Rule) -> None:
    """Every metric, label and label value is exposed by nettop or recorded by another rule."""
    metrics, recorded = exposed(), {rule["record"]: rule["expr"] for rule in rules_in(RECORDING)}
    selectors = [selector for text in texts(rule) for selector in SELECTOR.findall(text)]
    assert selectors
    for name, matchers in selectors:
        made_of = origins(name, recorded) - {"up"}
        assert made_of <= metrics.keys()
        labels = OF_TARGETS.union(*(metrics[origin] for origin in made_of))
        for label, value in MATCHER.findall(matchers):
            assert label in labels, name
            if label not in OF_TARGETS:
                assert_possible(made_of, label, value.replace(r"\\", "\\"))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_unit_tests_have_the_labels_that_are_served(path: Path) -> None:
    """Unit tests have all exposed labels, so that a rule that aggregates over too few fails."""
    metrics = exposed()
    for test in yaml.safe_load(path.read_text())["tests"]:
        for given in test["input_series"]:
            name, labels = given["series"].rstrip("}").partition("{")[::2]
            if name in metrics:
                assert {label for label, _ in MATCHER.findall(labels)} - OF_TARGETS == metrics[name]


def assert_possible(made_of: set[str], label: str, pattern: str) -> None:
    """Assert that each alternative of a pattern matches a possible value of the label in these metrics."""
    possible = {
        value
        for start, of, values in label_values()
        if of == label and any(origin.startswith(start) for origin in made_of)
        for value in values
    }
    for alternative in pattern.split("|"):
        assert any(re.fullmatch(alternative, value) for value in possible), (label, alternative)


def test_severities_of_drops() -> None:
    """Drops that are trouble raise an alert, except those excluded by reason; refused ones are recorded separately."""
    alerted = alerts()["PacketsDropped"]["expr"]
    assert f'severity="{drops.SEVERITIES[drops.TROUBLE]}"' in alerted
    (left_out,) = re.findall(r'reason!~"([^"]*)"', alerted)
    assert {drops.REASONS[name].severity for name in left_out.split("|")} == {drops.TROUBLE}
    (decided,) = (
        rule for rule in rules_in(RECORDING) if rule["record"] == "instance:nettop_drops_decided:rate5m"
    )
    assert f'severity="{drops.SEVERITIES[drops.REFUSED]}"' in decided["expr"]


# --- what alerts say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", alerts())
def test_alerts_say_what_where_and_how_to_look(name: str) -> None:
    """Each alert has a severity, its host in the summary, and an existing nettop command."""
    rule = alerts()[name]
    said = rule["annotations"]
    assert re.fullmatch(r"([A-Z][a-z]+)+", name)
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert said.keys() == {"summary", "description", "runbook"}
    assert "{{ $labels.instance }}" in said["summary"]
    assert said["runbook"] == "docs/deploy/prometheus.md#alerts"
    commands = re.findall(r"`(nettop [^`]*)`", said["description"])
    assert commands
    for command in commands:
        assert_exists(shlex.split(re.sub(r"\{\{.*?\}\}", "X", command))[1:])


def assert_exists(words: list[str]) -> None:
    """Assert that nettop accepts these words of a command line."""
    if words in (["doctor"], ["check"]):
        return
    options = [word for word in words if word != "--all"]
    given = dict(zip(options[::2], options[1::2], strict=True))
    _, table = find_table(given.pop("--view", connections.LENS.id))
    parse_filter(table, given.pop("--filter", ""))
    column = given.pop("--sort", f"-{table.key}").removeprefix("-")
    field = table.by_name[column.removesuffix("_per_s")]
    assert not column.endswith("_per_s") or field.kind is Kind.COUNTER
    assert not given


def test_the_documentation_has_every_alert() -> None:
    """The documentation lists every alert with its severity, duration and thresholds."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \| (\d+) min \| (\w+) \|$",
        (CHECKOUT / "docs/deploy/prometheus.md").read_text(),
        re.MULTILINE,
    )
    assert [name for name, *_ in rows] == list(alerts())
    for name, text, minutes, severity in rows:
        rule = alerts()[name]
        assert (f"{minutes}m", severity) == (rule["for"], rule["labels"]["severity"])
        said = {
            float(number) / (100 if percent else 1) for number, percent in re.findall(r"([\d.]+)( %)?", text)
        }
        said |= {1.0} if re.search(r"\bone\b", text) else set()
        assert {float(number) for number in THRESHOLD.findall(rule["expr"])} <= said, name
