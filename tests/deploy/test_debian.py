# SPDX-License-Identifier: Apache-2.0
"""The Debian package agrees with the installer and pyproject.toml, and lists the licences of its parts."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from .tools import CHECKOUT, DEPLOY

DEBIAN = DEPLOY / "debian"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
RULES = (DEBIAN / "rules").read_text()


def control() -> dict[str, dict[str, str]]:
    """Return the fields of each paragraph by package name; the source's is under ''."""
    paragraphs = {}
    for text in (DEBIAN / "control").read_text().split("\n\n"):
        lines = re.sub(r"(?m)^#.*\n", "", text).replace("\n ", " ").splitlines()
        fields = dict(line.split(": ", 1) for line in lines)
        paragraphs[fields.get("Package", "")] = fields
    return paragraphs


def names(depends: str) -> set[str]:
    """Return the packages that a field names."""
    return {word.split()[0] for word in depends.split(",") if not word.strip().startswith("$")}


def test_it_depends_on_what_the_installer_installs() -> None:
    """The package depends on what the installer installs, except venv; Python is added at build time."""
    script = (CHECKOUT / "scripts/install-deps.sh").read_text()
    (listed,) = re.findall(r"^ *apt\) say (python3 .*) ;;$", script, re.MULTILINE)
    depends = control()["nettop"]["Depends"]
    assert {"python3", "python3-venv", *names(depends)} == set(listed.split())
    assert "${nettop:Python}" in depends
    assert re.search(r"-Vnettop:Python=python3 \(>= 3\.\$\(minor\)~\), python3 \(<< 3\.", RULES)


def test_versions_are_those_of_the_project() -> None:
    """The required versions of numpy and Python are those in pyproject.toml."""
    (numpy,) = (re.match(r"numpy>=([\d.]+),", word) for word in PROJECT["dependencies"] if "numpy" in word)
    assert numpy is not None
    assert f"python3-numpy (>= 1:{numpy[1]})" in control()["nettop"]["Depends"]
    python = PROJECT["requires-python"].removeprefix(">=")
    assert f"python3 (>= {python}~)" in control()[""]["Build-Depends"]


def test_each_package_has_its_extra() -> None:
    """Each package unpacks its extra, and nettop-flows depends on exactly its version of nettop."""
    unpacked = re.findall(r"\$\(call unpack_wheels,([\w-]+),(\w+)\)", RULES)
    assert unpacked == [("nettop", "serve"), ("nettop-flows", "flows")]
    assert PROJECT["optional-dependencies"].keys() >= {extra for _, extra in unpacked}
    assert "nettop (= ${binary:Version})" in control()["nettop-flows"]["Depends"]


def test_every_unit_is_in_a_package() -> None:
    """Every unit is installed under its own name, and stopped when its package is removed."""
    packed = re.findall(r"\$\(call install_unit,([\w-]+),(\w+)\)", RULES)
    assert {f"nettop-{name}" for _, name in packed} == {
        file.stem for file in (DEPLOY / "systemd").glob("*.service")
    }
    for package, name in packed:
        assert f" nettop-{name}.service" in (DEBIAN / f"{package}.prerm").read_text()
    for unit in (DEPLOY / "systemd").glob("*.service"):
        assert "/usr/local/bin/nettop " in unit.read_text()


def test_it_runs_isolated() -> None:
    """The launcher runs its own interpreter isolated from the user's environment and home directory."""
    assert (DEBIAN / "launcher").read_text().startswith("#!/usr/lib/nettop/bin/python3 -I\n")


@pytest.mark.parametrize("file", sorted(DEBIAN.glob("*.lintian-overrides")), ids=lambda file: file.name)
def test_overrides_have_a_reason(file: Path) -> None:
    """Each override has a reason in the line above."""
    lines = file.read_text().splitlines()
    assert all(above.startswith("# ") for above in lines[::2])
    assert all(tag.startswith(f"{file.stem}: ") for tag in lines[1::2])


# --- licences ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vendored() -> ModuleType:
    """Load the script that vendors modules into the package."""
    spec = importlib.util.spec_from_file_location("vendored", DEBIAN / "vendored.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distribution(folder: Path, name: str, **files: str) -> None:
    """Write a package's metadata as pip installs it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    metadata = f"Name: {name}\nVersion: 1.0\nLicense-Expression: MIT\nHome-page: https://example.org/{name}\n"
    (info / "METADATA").write_text(metadata)
    for file, text in files.items():
        (info / file).write_text(text)


def test_copyright_has_every_licence(vendored: ModuleType, tmp_path: Path) -> None:
    """The copyright file has every licence in full, except those that Debian ships, which it references."""
    apache = (CHECKOUT / "LICENSES/Apache-2.0.txt").read_text()
    distribution(tmp_path, "one", LICENSE="Copyright 2020 Somebody\n\nPermission is granted.\n")
    distribution(
        tmp_path, "two", LICENSE=f"{apache}\nand a part under another\n", NOTICE="Copyright 2021 Others"
    )
    distribution(tmp_path, "nettop", LICENSE=apache)
    text = vendored.copyright_text(tmp_path)
    assert "\none 1.0\nLicence: MIT\nOrigin: https://example.org/one\n" in text
    assert "Copyright 2020 Somebody\n\nPermission is granted." in text
    assert "Copyright 2021 Others" in text
    assert "which is in /usr/share/common-licenses/Apache-2.0\n\nand a part under another" in text
    assert "Grant of Copyright License" not in text
    assert "\nnettop 1.0\n" not in text


def test_a_licence_that_is_missing_is_noticed(vendored: ModuleType, tmp_path: Path) -> None:
    """A package without a licence fails the build."""
    distribution(tmp_path, "one")
    with pytest.raises(ValueError, match=r"one-1\.0"):
        vendored.copyright_text(tmp_path)


def test_files_of_another_package_are_left_out(vendored: ModuleType, tmp_path: Path) -> None:
    """A file shared with the other package is removed; a different file of the same name is an error."""
    stays, folder = tmp_path / "stays", tmp_path / "folder"
    distribution(stays, "one", LICENSE="text")
    distribution(folder, "one", LICENSE="text")
    distribution(folder, "two", LICENSE="text")
    vendored.subtract(stays, folder)
    assert [path.name for path in folder.iterdir()] == ["two-1.0.dist-info"]
    distribution(folder, "one", LICENSE="another text")
    with pytest.raises(ValueError, match="LICENSE"):
        vendored.subtract(stays, folder)
