# SPDX-License-Identifier: Apache-2.0
"""The manifests rendered by kustomize are valid, and agree with each other, compose.yaml and nettop."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from nettop.serve.health import LIVE_PATH
from nettop.settings import DEFAULT_LISTEN, DEFAULT_QUERY_LISTEN, FLOW_PORTS

from .compose import CAPABILITIES
from .npm import npm_packages
from .tools import CHECKOUT, DEPLOY, debian_package, options_of

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("base", "overlays/collect", "overlays/clickhouse")
OPERATOR = ("@kubernetes-models/prometheus-operator@6.0.0", "typescript@5.9.3")
PORT = int(DEFAULT_LISTEN.rpartition(":")[2])
QUERY_PORT = int(DEFAULT_QUERY_LISTEN.rpartition(":")[2])
OLDEST = "1.30"
"""First Kubernetes version with appArmorProfile."""
UID = 10001

Manifest = dict[str, Any]


def kubectl(*words: str) -> str:
    """Run Debian 13's kubectl and return its output."""
    command = debian_package("kubectl", "trixie") / "usr/bin/kubectl"
    done = subprocess.run([command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Render the manifests of the base or an overlay."""
    return tuple(yaml.safe_load_all(kubectl("kustomize", str(KUBERNETES / overlay))))


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    """Return the manifests of a kind by name."""
    return {
        resource["metadata"]["name"]: resource for resource in rendered(overlay) if resource["kind"] == kind
    }


def pod_of(workload: Manifest) -> Manifest:
    """Return the pod specification of a workload."""
    pod = workload["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def workloads(overlay: str) -> dict[str, Manifest]:
    """Return the DaemonSets and StatefulSets by name."""
    return of_kind(overlay, "DaemonSet") | of_kind(overlay, "StatefulSet")


def selected(overlay: str, selector: dict[str, str]) -> set[str]:
    """Return the workloads whose pods have these labels."""
    return {
        name
        for name, workload in workloads(overlay).items()
        if selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    }


def ports_of(overlay: str, name: str) -> dict[str, tuple[int, str]]:
    """Return a workload's ports by name: number and protocol."""
    (container,) = pod_of(workloads(overlay)[name])["containers"]
    return {port["name"]: (port["containerPort"], port.get("protocol", "TCP")) for port in container["ports"]}


@pytest.mark.parametrize("version", [OLDEST, None], ids=["oldest", "newest"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_them(overlay: str, version: str | None, tmp_path: Path) -> None:
    """The manifests are valid in the oldest supported and the newest Kubernetes."""
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(rendered(overlay)))
    command = Path(sys.executable).with_name("kubernetes-validate")
    versions = ["--kubernetes-version", version] if version else []
    done = subprocess.run([command, "--strict", *versions, file], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert output.count("passed for resource") == len(rendered(overlay))


def test_the_operator_takes_the_pod_monitor(tmp_path: Path) -> None:
    """The PodMonitor matches the operator's types, and selects the pods of `serve`."""
    (monitor,) = yaml.safe_load_all((KUBERNETES / "components/podmonitor/podmonitor.yaml").read_text())
    installed = npm_packages(*OPERATOR)
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    unknown = json.loads(json.dumps(monitor))
    unknown["spec"]["podMetricsEndpoints"][0]["bearerTokenFiles"] = "x"
    assert typed(tmp_path, monitor) == ""
    assert "bearerTokenFiles" in typed(tmp_path, unknown)
    assert selected("overlays/collect", monitor["spec"]["selector"]["matchLabels"]) == {"nettop"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert ports_of("base", "nettop")[endpoint["port"]] == (PORT, "TCP")
    assert endpoint["authorization"]["credentials"]["name"] in secrets_of("base", "nettop")


_MODEL = "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor"


def typed(folder: Path, monitor: Manifest) -> str:
    """Return the compiler's objections to a PodMonitor."""
    (folder / "check.ts").write_text(
        f'import {{IPodMonitor}} from "{_MODEL}";\nexport const monitor: IPodMonitor = {json.dumps(monitor)};\n'
    )
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext"]
    words = ["node", "node_modules/typescript/bin/tsc", *options, "check.ts"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def secrets_of(overlay: str, name: str) -> set[str]:
    """Return the secrets that a workload mounts, group-readable only: nettop refuses a world-readable token."""
    volumes = [
        volume["secret"] for volume in pod_of(workloads(overlay)[name])["volumes"] if "secret" in volume
    ]
    assert all(volume["defaultMode"] == 0o440 for volume in volumes)
    return {volume["secretName"] for volume in volumes}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_with_the_least_privilege(overlay: str) -> None:
    """Pods run as a user on a read-only root; `serve` with the capabilities of compose.yaml, `collect` with none."""
    assert "privileged: true" not in kubectl("kustomize", str(KUBERNETES / overlay))
    for name, workload in workloads(overlay).items():
        pod = pod_of(workload)
        (container,) = pod["containers"]
        context, security = pod["securityContext"], container["securityContext"]
        assert context["runAsNonRoot"] and {
            context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")
        } == {UID}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["readOnlyRootFilesystem"] and pod["automountServiceAccountToken"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        if name == "nettop":
            assert security["capabilities"]["add"] == CAPABILITIES
            assert pod["hostNetwork"] and pod["hostPID"]
        else:
            assert "add" not in security["capabilities"] and not security["allowPrivilegeEscalation"]
            assert "hostNetwork" not in pod and "hostPID" not in pod


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_match_the_right_pods(overlay: str) -> None:
    """Workloads select their own pods; services and policies, pods with the ports that they name."""
    for name, workload in workloads(overlay).items():
        assert selected(overlay, workload["spec"]["selector"]["matchLabels"]) == {name}
    by_service = {"nettop": "nettop", "nettop-flows": "nettop-collect", "nettop-collect": "nettop-collect"}
    for name, service in of_kind(overlay, "Service").items():
        assert selected(overlay, service["spec"]["selector"]) == {by_service[name]}
        for port in service["spec"]["ports"]:
            number, protocol = ports_of(overlay, by_service[name])[port["targetPort"]]
            assert (port["port"], port.get("protocol", "TCP")) == (number, protocol)
    for name, policy in of_kind(overlay, "NetworkPolicy").items():
        assert selected(overlay, policy["spec"]["podSelector"]["matchLabels"]) == {name}
        for rule in policy["spec"]["ingress"]:
            for port in rule["ports"]:
                assert ports_of(overlay, name)[port["port"]][1] == port["protocol"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_are_nettops(overlay: str) -> None:
    """Every option exists, and the ports match those of listeners and probes."""
    for name, workload in workloads(overlay).items():
        (container,) = pod_of(workload)["containers"]
        command, *words = container["args"]
        given = dict(word.split("=", 1) for word in words)
        assert given.keys() <= options_of(command)
        ports = ports_of(overlay, name)
        if command == "serve":
            assert given["--listen"] == f"$(HOST_IP):{PORT}" and ports == {"http": (PORT, "TCP")}
        else:
            assert given["--query-listen"] == f"0.0.0.0:{QUERY_PORT}" and ports["query"] == (
                QUERY_PORT,
                "TCP",
            )
            assert sorted(number for number, protocol in ports.values() if protocol == "UDP") == sorted(
                map(int, FLOW_PORTS)
            )
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert any(given["--data-dir"].startswith(f"{mount}/") for mount in mounts)
        for option in ("--token-file", "--clickhouse"):
            if option in given:
                folder = str(Path(given[option].removeprefix("@")).parent)
                assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert container["readinessProbe"]["httpGet"]["path"] == "/health"
        assert container["readinessProbe"]["httpGet"]["port"] in ports
        probe = container["livenessProbe"]
        assert probe.get("tcpSocket", probe.get("httpGet"))["port"] in ports
        assert probe.get("httpGet", {}).get("path", LIVE_PATH) == LIVE_PATH


def test_prometheus_discovers_the_pods() -> None:
    """The configuration without an operator matches the pods' labels and port names."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus/kubernetes.yml").read_text())["scrape_configs"]
    (keep,) = (rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    kept = set()
    for name, workload in workloads("overlays/collect").items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        for port in ports_of("overlays/collect", name):
            if re.fullmatch(keep["regex"], f"{labels['app.kubernetes.io/name']};{port}"):
                kept.add((name, port))
    assert kept == {("nettop", "http")}
    (discovery,) = job["kubernetes_sd_configs"]
    assert discovery["namespaces"]["names"] == list(of_kind("base", "Namespace"))


def test_the_password_is_in_no_command_line() -> None:
    """The server's URL comes from a secret that only this collector mounts."""
    (container,) = pod_of(workloads("overlays/clickhouse")["nettop-collect"])["containers"]
    (word,) = (word for word in container["args"] if word.startswith("--clickhouse"))
    assert word.startswith("--clickhouse=@/")
    assert secrets_of("overlays/clickhouse", "nettop-collect") == {"nettop-token", "nettop-clickhouse"}
    assert secrets_of("overlays/clickhouse", "nettop") == {"nettop-token"}


def test_a_custom_kustomization(tmp_path: Path) -> None:
    """The kustomization in docs/deploy/kubernetes.md adds images and the PodMonitor to the base and an overlay."""
    for overlay, images in (("base", {"nettop"}), ("overlays/collect", {"nettop", "nettop-flows"})):
        folder = tmp_path / Path(overlay).name
        folder.mkdir()
        here = os.path.relpath(KUBERNETES, folder)
        own = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{here}/{overlay}"],
            "components": [f"{here}/components/podmonitor"],
            "images": [
                {"name": name, "newName": f"REGISTRY/{name}", "newTag": "1"} for name in sorted(images)
            ],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
        made = list(yaml.safe_load_all(kubectl("kustomize", str(folder))))
        used = {
            container["image"]
            for resource in made
            if resource["kind"] in ("DaemonSet", "StatefulSet")
            for container in pod_of(resource)["containers"]
        }
        assert used == {f"REGISTRY/{name}:1" for name in images}
        assert "PodMonitor" in {resource["kind"] for resource in made}
        document = CHECKOUT / "docs/deploy/kubernetes.md"
        if overlay == "base" and document.exists():
            written = re.search(
                r"( *)```yaml\n(.*kind: Kustomization.*?)```", document.read_text(), re.DOTALL
            )
            assert written is not None
            text = textwrap.dedent(written[2]).replace("../nettop/deploy/kubernetes", here)
            assert yaml.safe_load(text) == own
