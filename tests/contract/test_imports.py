# SPDX-License-Identifier: Apache-2.0
"""Imports of frontends: never the kernel package, and nothing heavy before it is needed."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from nettop.errors import ExitCode
from nettop.snapshots import lenses
from tests.unit.children import ran

PRINT_MODULES = "import json, sys; sys.stderr.write(json.dumps(sorted(sys.modules)))"


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after `code`."""
    done = ran("-c", f"import sys\ntry:\n    {code}\nfinally:\n    {PRINT_MODULES}")
    modules: list[str] = json.loads(done.stderr.splitlines()[-1])
    return set(modules)


@pytest.mark.parametrize("frontend", ["nettop.output.text", "nettop.screens.app"])
def test_frontends_import_no_kernel_package(frontend: str) -> None:
    """Importing a frontend imports neither bcc nor the kernel package nor a probe."""
    loaded = loaded_by(f"import {frontend}")
    assert frontend in loaded
    assert not {
        name for name in loaded if name == "bcc" or name.startswith(("nettop.kernel", "nettop.probes."))
    }


def test_no_circles() -> None:
    """No module imports another that imports it, however indirectly, not even for types alone."""
    graph = grimp.build_graph("nettop", cache_dir=None)
    TopologicalSorter(
        {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    ).prepare()


@pytest.mark.parametrize(
    "option", ["--help", "--help-all", "--version", "log', '--help", "collect', '--help"]
)
def test_help_is_light(option: str) -> None:
    """--help and --version load neither Textual nor numpy nor the engine."""
    loaded = loaded_by(f"sys.argv = ['nettop', '{option}']; from nettop.cli import main; main()")
    assert "nettop.cli" in loaded
    assert not {"textual", "numpy", "nettop.engine", "nettop.kernel"} & loaded


def test_plain_output_loads_no_screens() -> None:
    """Plain output does not import Textual."""
    assert "textual" not in loaded_by("import nettop.output.text, nettop.engine.session")


@pytest.mark.parametrize(
    "frontend", ["nettop.screens.nettop_app, nettop.commands.view", "nettop.serve.command"]
)
def test_what_is_live_loads_no_recording(frontend: str) -> None:
    """The screens and the server of the running kernel import neither zstandard nor the format of recordings."""
    loaded = loaded_by(f"import {frontend}, nettop.engine.source")
    assert "nettop.engine.source" in loaded
    assert not {"zstandard", "nettop.recording.chunks", "nettop.recording.recording"} & loaded


LEFT_OUT = """
from threading import Thread
from nettop.process.importing import importing
def https():
    import http.client
    http.client.HTTPSConnection
with importing(without=["ssl"]):
    import asyncio.base_events
    assert asyncio.base_events.ssl is None
    sampler = Thread(target=https)
    sampler.start()
    sampler.join()
import http.client, ssl
assert http.client.HTTPSConnection
"""


def test_a_module_is_left_out_for_one_thread_alone() -> None:
    """While the screens load asyncio without OpenSSL, the sampler can load a lens that reads a collector by HTTPS."""
    done = ran("-c", LEFT_OUT)
    assert (done.returncode, done.stderr) == (0, "")


HIDE_NUMPY = """
import sys
class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from nettop.cli import run
sys.exit(run(sys.argv[1:]))
"""


def without_numpy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run nettop with numpy hidden."""
    return ran("-B", "-c", HIDE_NUMPY, *words, cwd=folder)


@pytest.mark.parametrize(
    "words",
    [("--table", "--once"), ("serve", "--listen", "127.0.0.1:0"), ("collect",)],
    ids=lambda words: words[0],
)
def test_a_command_without_numpy(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Without numpy a command prints one clear error with a remedy, and exits with 3."""
    done = without_numpy(tmp_path, *words)
    assert (done.returncode, done.stdout) == (ExitCode.UNSUPPORTED, "")
    assert done.stderr.startswith("nettop: numpy cannot be imported: No module named 'numpy")
    assert "install-deps.sh" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_doctor_without_numpy(tmp_path: Path) -> None:
    """Doctor reports the host, a bad numpy check, and the same reason for each lens."""
    done = without_numpy(tmp_path, "doctor", "--no-traffic", "--format", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (ExitCode.UNSUPPORTED, "")
    numpy = next(check for check in report["checks"] if check["name"] == "numpy")
    assert numpy["verdict"] == "bad"
    assert {lens["error"]["what"] for lens in report["lenses"]} == {numpy["value"]}
    assert {lens["error"]["remedy"] for lens in report["lenses"]} == {numpy["remedy"]}


# --- self-tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", [lens.id for lens in lenses()])
def test_each_lens_has_a_self_test(lens: str) -> None:
    """`self_test.run` in the package of its probe takes the source and the paths of the traffic."""
    run = importlib.import_module(f"nettop.probes.{lens}.self_test").run
    assert len(inspect.signature(run).parameters) == 2
