# SPDX-License-Identifier: Apache-2.0
"""Every sequence of three runs of scripts/install-deps.sh, each beginning on a machine without nettop.

The script is the real one. pip is replaced by one that installs a nettop of one line: 155 runs take two minutes.
"""

from __future__ import annotations

import ensurepip
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from .test_install import NEW, Machine, checkout, rewrite, units

pytestmark = [pytest.mark.kernel, pytest.mark.install]

RUNS = 3
CHOICES = ("", "--flows", "--services", "--dev", "--uninstall")
PIP = """
import subprocess, sys
from pathlib import Path

python = sys.argv[sys.argv.index("--python") + 1] if "--python" in sys.argv else sys.executable
where = subprocess.check_output((python, "-I", "-c", "import sysconfig as s; print(s.get_path('purelib'))"), text=True)
modules, command = Path(where.strip()), Path(python).with_name("nettop")
if "wheel" in sys.argv:
    Path(sys.argv[sys.argv.index("--wheel-dir") + 1], "nettop-1-py3-none-any.whl").touch()
elif any(word.endswith("nettop-1-py3-none-any.whl") or word == "--editable" for word in sys.argv):
    for name in ("rich", "textual", "typer", "nettop", "nettop/cli", "nettop/serve", "nettop/serve/command"):
        (modules / name).mkdir(exist_ok=True)
        (modules / name / "__init__.py").touch()
    command.write_text(f"#!{python}\\nprint('nettop 1')\\n")
    command.chmod(0o755)
elif any(word.endswith("requirements/flows.txt") for word in sys.argv):
    (modules / "chdb.py").touch()
"""
ENSUREPIP = f"""
import sys, sysconfig
from pathlib import Path

package = Path(sysconfig.get_path("purelib"), "pip")
package.mkdir(exist_ok=True)
(package / "__init__.py").touch()
(package / "__main__.py").write_text({PIP!r})
Path(sys.executable).with_name("pip").write_text("#!" + sys.executable)
"""


@dataclass(frozen=True)
class State:
    """The installed state."""

    nettop: bool = False
    flows: bool = False
    services: bool = False
    dev: bool = False

    def after(self, choice: str) -> State:
        """Return the state after a run: upgrades keep earlier installs, and nothing removes .venv."""
        if choice == "--uninstall":
            return State(dev=self.dev)
        return replace(self, nettop=True, **{choice[2:]: True} if choice else {})


@pytest.mark.timeout(3600)
def test_every_sequence_of_options(tmp_path: Path) -> None:
    """Each run ends with 0, prints nothing to standard error, and leaves what its options say."""
    machine = Machine(tmp_path / "machine")
    checkout(machine.opt.parent / "checkout", NEW)
    (tmp_path / "ensurepip.py").write_text(ENSUREPIP)
    for folder in ("checkout", "wheels"):
        (tmp_path / folder).mkdir()
    with ThreadPoolExecutor(2) as pool:
        faults = pool.map(lambda choice: [*follow(tmp_path, "machine", State(), (choice,))], CHOICES)
    assert [fault for some in faults for fault in some] == []


def follow(folder: Path, before: str, state: State, choices: tuple[str, ...]) -> Iterator[str]:
    """Yield the errors after the last choice, and after those that can follow it."""
    name = f"{before},{choices[-1]}"
    subprocess.run(["cp", "-a", "--reflink=auto", folder / before, folder / name], check=True)
    state = state.after(choices[-1])
    faults = [f"{choices}: {fault}" for fault in run(folder, Machine(folder / name), state, choices[-1])]
    yield from faults
    if not faults and len(choices) < RUNS:
        for choice in CHOICES:
            yield from follow(folder, name, state, (*choices, choice))
    shutil.rmtree(folder / name)


def run(folder: Path, machine: Machine, state: State, choice: str) -> Iterator[str]:
    """Run the script; yield each deviation from the expected state."""
    sources, module = folder / "checkout", Path(ensurepip.__file__).with_name("__main__.py")
    words = [str(sources / "scripts/install-deps.sh"), *filter(None, [choice])]
    if choice != "--uninstall":
        words += ["--no-system-packages", "--wheels", str(folder / "wheels")]
    prepared = (
        f"mount --bind {machine.opt.parent}/checkout {sources} && mount --bind {folder}/ensurepip.py {module}"
    )
    done = machine.run(*words, prepared=prepared)
    if done.returncode or done.stderr:
        yield f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    actual = State(
        nettop=(machine.bin / "nettop").is_symlink() and len(machine.releases) == 1,
        flows=any(machine.opt.glob("nettop/current/lib/python3*/site-packages/chdb.py")),
        services=units(machine.units) == units(machine.opt.parent / "checkout/deploy/systemd"),
        dev=(machine.opt.parent / "checkout/.venv/.nettop-install").exists(),
    )
    if actual != state:
        yield f"{actual} instead of {state}"
    if not state.nettop and (
        left := [*machine.opt.iterdir(), *machine.bin.iterdir(), *machine.units.iterdir()]
    ):
        yield f"left by --uninstall: {left}"


@pytest.mark.parametrize("fault", ["false", "readonly once=1; once=2", "echo $nowhere", "value=$(exit 3)"])
def test_an_error_of_the_script_is_explained(tmp_path: Path, fault: str) -> None:
    """An error at which bash exits has a message too: its line, and what is left behind."""
    machine, sources = Machine(tmp_path / "machine"), checkout(tmp_path / "checkout", NEW)
    script = sources / "scripts/install-deps.sh"
    rewrite(script, r"(?m)^install_system_packages\(\) \{", rf"\g<0>\n  {fault}")
    done = machine.run(str(script), "--no-system-packages")
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("install-deps: stopped by an error of this script, in install_system_packages")
    assert last.endswith("nettop is unchanged. Please report this.")
