# SPDX-License-Identifier: Apache-2.0
"""A lens in a package of its own, installed by pip beside nettop, is one of nettop's lenses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.contract.test_sample_lens import PAGE, PILOT
from tests.unit.children import ran

_MODULES = {
    "nettop/snapshots/softnet.py": "__init__.py",
    "nettop/probes/softnet/probe.py": "probe.py",
    "nettop/probes/softnet/self_test.py": "self_test.py",
    "nettop/screens/softnet.py": "screen.py",
}
"""The page's files, and their names in a package of its own."""


def install(folder: Path, modules: dict[str, str], project: str, package: str) -> Path:
    """Build a wheel of the modules and install it into `folder` by pip. Return the folder."""
    metadata = tomllib.loads(project)["project"]
    name, version = metadata["name"], metadata["version"]
    points = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in metadata["entry-points"].items()
    ]
    files = {f"{package}/{module}": text for module, text in modules.items()} | {
        f"{package}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{package}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{package}-{version}.dist-info/entry_points.txt": "\n".join(points),
    }
    wheel = folder.parent / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{package}-{version}.dist-info/RECORD", "".join(f"{path},,\n" for path in files))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(pip, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the page's lens as the package that the page describes, with another that cannot be imported."""
    text = PAGE.read_text()
    files = dict(
        re.findall(r"^### `([^`]+)`\n\n```(?:python|toml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    )
    modules = {
        name: files[path].replace("nettop.snapshots.softnet", "nettop_softnet")
        for path, name in _MODULES.items()
    }
    folder = install(
        tmp_path_factory.mktemp("softnet") / "packages", modules, files["pyproject.toml"], "nettop_softnet"
    )
    broken = files["pyproject.toml"].replace("softnet", "broken")
    return install(folder, {"__init__.py": "import no_such_module\n"}, broken, "nettop_broken")


def run(installed: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages beside nettop."""
    done = ran("-B", *words, env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "120"})
    assert done.returncode == status, done.stderr
    return done


def nettop(installed: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run nettop's command line."""
    return run(installed, "-m", "nettop", *words, status=status)


def test_text(installed: Path) -> None:
    """--view shows its table, with its columns, filter and option."""
    words = ("--view", "softnet", "--table", "-d", "--once", "--filter", "cpu=0", "--busiest", "4096")
    header, line = nettop(installed, *words).stdout.splitlines()
    assert header.split() == ["cpu", "processed", "dropped"]
    assert line.split()[0] == "0"


def test_help(installed: Path) -> None:
    """--help has its options, and completion its name."""
    assert "--busiest" in nettop(installed, "log", "--help").stdout
    names = run(installed, "-c", "from nettop.snapshots import views; print(*views())").stdout.split()
    assert "softnet" in names


def test_doctor(installed: Path) -> None:
    """Doctor runs its self-test, names its package, and says why another package's lens cannot be used."""
    report = json.loads(nettop(installed, "doctor", "--only", "softnet", "--format", "json").stdout)
    assert [result["ok"] for result in report["self_test"]] == [True]
    code = "from nettop.doctor.facts import check_lenses; print(*check_lenses(None), sep='\\n')"
    broken, softnet = run(installed, "-c", code).stdout.splitlines()
    assert "nettop-softnet 1.0" in softnet
    assert "nettop-broken 1.0: nettop_broken cannot be imported: ModuleNotFoundError" in broken
    assert "upgrade or uninstall nettop-broken" in broken


def test_a_broken_package(installed: Path) -> None:
    """Other lenses work; the broken one is refused with its cause and what to do."""
    error = nettop(installed, "--view", "broken", "--table", "--once", status=3).stderr
    assert "the lens broken cannot be used: nettop_broken cannot be imported" in error
    assert "upgrade or uninstall nettop-broken" in error


def test_screens(installed: Path) -> None:
    """It has a tab, its own screen on its digit, and its option's key."""
    assert run(installed, "-c", PILOT).stderr == ""


def test_lenses_without_plugins() -> None:
    """Without such packages nothing is imported to look for them."""
    code = "import sys; from nettop.snapshots import lenses; lenses(); print('importlib.metadata' in sys.modules)"
    assert run(Path(), "-c", code).stdout == "False\n"
