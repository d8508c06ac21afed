# SPDX-License-Identifier: Apache-2.0
"""scripts/install-deps.sh, with empty directories in place of /opt and /usr/local/bin.

However it is killed, a working nettop remains; its messages are true; errors name their cause.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nettop.kernel.bpf.program_cache import DIRECTORY
from tests.deploy.booted import SYSTEMD, Booted

from .command import living, mounted
from .lab import PATIENCE, until
from .test_killed import descendants, kill

pytestmark = [pytest.mark.kernel, pytest.mark.install]

REPOSITORY = Path(__file__).parents[2]
KILLS = 20
SEED = int(os.environ.get("NETTOP_TEST_SEED", random.SystemRandom().randrange(1_000_000)))
PARTS = ("nettop", "scripts", "deploy", "LICENSES", "LICENSE", "README.md", "pyproject.toml", "requirements")
OLD, NEW = "0.0.1", "0.0.2"
WITHOUT = 'exec setpriv --inh-caps=$cap --bounding-set=$cap "$0" "$@"'
PACKAGE = "/opt/nettop/current/lib/python3*/site-packages/nettop"
NO_INDEX = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
UNLISTED = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "SUDO_UID", "SUDO_GID")


class Machine:
    """A machine for installing nettop: the host, with its own /opt, /usr/local/bin, units, /run, /var/cache
    and temporary directory. Its cache of programs begins as a copy of the host's."""

    def __init__(self, path: Path) -> None:
        self.opt, self.bin, self.temporary = path / "opt", path / "bin", path / "tmp"
        self.locks, self.units, self.cache = path / "run", path / "units", path / "cache"
        for folder in (path, self.opt, self.bin, self.temporary, self.locks, self.units, self.cache):
            folder.mkdir(mode=0o755, exist_ok=True)
        if DIRECTORY.exists():
            shutil.copytree(DIRECTORY, self.cache / DIRECTORY.name, dirs_exist_ok=True)

    def words(self, *command: str, prepared: str = "true") -> tuple[str, ...]:
        """Return words that run a command on the machine, after the shell commands of `prepared`."""
        places = {
            self.opt: "/opt",
            self.bin: "/usr/local/bin",
            self.locks: "/run",
            self.units: "/etc/systemd/system",
            self.cache: DIRECTORY.parent,
        }
        binds = " && ".join(f"mount --bind {folder} {place}" for folder, place in places.items())
        return *mounted(f"{binds} && {prepared}"), *command

    def start(self, *command: str, prepared: str = "true", **environment: str) -> subprocess.Popen[str]:
        """Start a command on the machine."""
        inherited = {name: value for name, value in os.environ.items() if name not in UNLISTED}
        return subprocess.Popen(
            self.words(*command, prepared=prepared),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | {"TMPDIR": str(self.temporary)} | environment,
        )

    def run(self, *command: str, **how: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end."""
        with self.start(*command, **how) as process:
            out, errors = process.communicate(timeout=120 * PATIENCE)
        return subprocess.CompletedProcess(command, process.returncode, out, errors)

    def version(self) -> str:
        """Return the version of nettop that runs there."""
        done = self.run("/usr/local/bin/nettop", "--version")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip().removeprefix("nettop ").partition("+")[0]

    @property
    def releases(self) -> list[Path]:
        """List the installed releases, finished or not."""
        return list((self.opt / "nettop" / "releases").glob("*"))


def checkout(path: Path, version: str) -> Path:
    """Create sources with another version, with few development packages, and without Git."""
    path.mkdir(mode=0o755)
    for part in PARTS:
        source = REPOSITORY / part
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, path / part, **({"ignore": _COMPILED} if source.is_dir() else {}))
    rewrite(path / "nettop" / "__init__.py", r'(__version__ = )"[^"]*"', rf'\1"{version}"')
    for unit in (path / "deploy" / "systemd").iterdir():
        rewrite(unit, "(?m)^Description=nettop", rf"\g<0> {version}")
    shutil.copy2(path / "requirements/serve.txt", path / "requirements/dev.txt")
    return path


_COMPILED = shutil.ignore_patterns("__pycache__")


def rewrite(path: Path, pattern: str, replacement: str) -> None:
    """Replace the only occurrence of a text."""
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1
    path.write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the checkouts, the wheels, and the machine that most tests share."""
    path = tmp_path_factory.mktemp("install")
    old = checkout(path / OLD, OLD)
    checkout(path / NEW, NEW)
    words = [old / "scripts" / "install-deps.sh", "--dev", "--make-wheels", path / "wheels"]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if "is not reachable" in made.stderr:
        pytest.skip("no package index can be reached")
    assert made.returncode == 0, made.stderr
    yield path
    shutil.rmtree(path)


def units(folder: Path) -> dict[str, str]:
    """Return the units in a directory."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def installer(folder: Path, version: str, *options: str) -> tuple[str, ...]:
    """Return the command that installs the version."""
    script = str(folder / version / "scripts" / "install-deps.sh")
    return script, "--no-system-packages", "--wheels", str(folder / "wheels"), *options


@pytest.fixture(scope="module")
def machine(folder: Path) -> Machine:
    """Return a machine with the older nettop installed. Tests leave it unchanged."""
    machine = Machine(folder / "machine")
    done = machine.run(*installer(folder, OLD))
    assert (done.returncode, done.stderr) == (0, "")
    steps = [line.partition(" …")[0] for line in done.stdout.splitlines()]
    assert steps[:-1] == [
        "[1/7] Distribution packages",
        "[2/7] Python of bcc",
        "[3/7] Installed nettop",
        "[4/7] Virtual environment",
        "[5/7] Python packages",
        "[6/7] Check of the new nettop",
        "[7/7] Programs for this kernel",
    ]
    assert re.fullmatch(r"Done in \d+ s\. Start it with: nettop", steps[-1])
    assert re.search(r"Programs for this kernel … \d+ programs in /var/cache/nettop", done.stdout)
    return machine


@pytest.fixture
def own_machine(machine: Machine, tmp_path: Path) -> Iterator[Machine]:
    """Return a machine with the older nettop, for this test alone."""
    path = tmp_path / "machine"
    shutil.copytree(machine.opt.parent, path, symlinks=True)
    yield Machine(path)
    shutil.rmtree(path)


def assert_unchanged(machine: Machine) -> None:
    """Assert that the older nettop works, and that nothing was added."""
    assert machine.version() == OLD
    assert len(machine.releases) == 1
    assert list(machine.temporary.iterdir()) == []


@pytest.mark.timeout(3600)
def test_killed_at_random_moments(own_machine: Machine, folder: Path) -> None:
    """Between random kills a nettop always works, and the next run, of either version, completes."""
    print(f"NETTOP_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    began = time.monotonic()
    installed = NEW
    assert own_machine.run(*installer(folder, installed, "--services")).returncode == 0
    whole_s = time.monotonic() - began
    for number in range(KILLS):
        target = OLD if installed == NEW else NEW
        process = own_machine.start(*installer(folder, target))
        with process:
            moment = chance.uniform(0, whole_s)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                everyone = descendants(process.pid)
                for victim in chance.choice((everyone[::-1], everyone[-1:])):
                    kill(victim)
        where = f"kill {number} of seed {SEED}, after {moment:.2f} s of {whole_s:.2f} s"
        assert own_machine.version() in (OLD, NEW), where
        installed = chance.choice((OLD, NEW))
        done = own_machine.run(*installer(folder, installed))
        assert (done.returncode, own_machine.version()) == (0, installed), f"{where}: {done.stderr}"
        assert len(own_machine.releases) == 1, where
        assert units(own_machine.units) == units(folder / installed / "deploy" / "systemd"), where


def test_services(own_machine: Machine, folder: Path) -> None:
    """Upgrades neither enable nor lose services; units that someone edited or made stay, and are named."""
    old, new = (units(folder / version / "deploy" / "systemd") for version in (OLD, NEW))
    done = own_machine.run(*installer(folder, OLD, "--services"))
    assert (done.returncode, done.stderr) == (0, "")
    said = f"[8/8] Services … {len(old)} new in /etc/systemd/system; to start one: systemctl enable"
    assert said in done.stdout
    assert units(own_machine.units) == old
    assert "Services … nothing new" in own_machine.run(*installer(folder, OLD)).stdout
    edited, removed = (own_machine.units / f"nettop-{name}.service" for name in ("log", "serve"))
    edited.write_text(edited.read_text() + "# edited\n")
    removed.unlink()
    drop_in = own_machine.units / f"{removed.name}.d"
    drop_in.mkdir()
    done = own_machine.run(*installer(folder, NEW))
    assert f"Services … {len(new) - 1} new" in done.stdout
    assert done.stderr.startswith(f"install-deps: /etc/systemd/system/{edited.name} was edited and is kept.")
    kept = {edited.name: edited.read_text()}
    assert units(own_machine.units) == new | kept
    done = own_machine.run(*installer(folder, NEW)[:1], "--uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    left = sorted(f"/etc/systemd/system/{path.name}" for path in (edited, drop_in))
    assert (
        done.stdout.splitlines()[-1] == f"Left in place, because you created or edited them: {' '.join(left)}"
    )
    assert units(own_machine.units) == kept
    assert not (own_machine.opt / "nettop").exists()
    assert not list(own_machine.cache.iterdir())


def test_a_unit_of_somebody_else_stays(own_machine: Machine, folder: Path) -> None:
    """A foreign unit stays, also if masked; it becomes nettop's again once its text equals nettop's."""
    masked, other = (own_machine.units / f"nettop-{name}.service" for name in ("log", "serve"))
    masked.symlink_to("/dev/null")
    other.write_text("[Service]\nExecStart=/bin/true\n")
    done = own_machine.run(*installer(folder, OLD, "--services"))
    assert (done.returncode, done.stderr.count("was edited and is kept")) == (0, 2)
    assert (masked.is_symlink(), other.read_text()) == (True, "[Service]\nExecStart=/bin/true\n")
    masked.unlink()
    other.write_text(units(folder / OLD / "deploy" / "systemd")[other.name])
    done = own_machine.run(*installer(folder, NEW))
    assert (done.returncode, done.stderr) == (0, "")
    assert units(own_machine.units) == units(folder / NEW / "deploy" / "systemd")


@pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is not installed")
def test_services_that_systemd_runs(machine: Machine, folder: Path, tmp_path: Path) -> None:
    """A service runs from the installed files, and stops when they are removed; nothing is enabled unasked."""
    place = tmp_path / "booted"
    with Booted(place, installed=False) as booted:
        shutil.copytree(machine.opt, place / "root" / "opt", symlinks=True, dirs_exist_ok=True)
        assert booted.run(*installer(folder, OLD, "--services")).stderr == ""
        for unit in units(folder / OLD / "deploy" / "systemd"):
            assert booted.run("systemctl", "is-enabled", unit, check=False).stdout == "disabled\n"
        booted.run("systemctl", "enable", "--now", "nettop-log")
        assert list((place / "root" / "var/log/private/nettop").iterdir())
        assert booted.run(*installer(folder, OLD)[:1], "--uninstall").stderr == ""
        assert booted.show("nettop-log", "LoadState") == "not-found"
        assert booted.show("nettop-log", "ActiveState") == "inactive"
        assert not list((place / "root" / "etc/systemd/system").rglob("nettop*"))


def test_up_to_date_is_what_runs(own_machine: Machine, folder: Path) -> None:
    """nettop reports itself up to date if the installed files equal this checkout, and not if one differs."""
    assert "up to date" in own_machine.run(*installer(folder, OLD)).stdout
    for damage in (
        f"sed -i s/{OLD}/{NEW}/ {PACKAGE}/__init__.py",
        f"rm {PACKAGE}/output/__init__.py",
        "rm /usr/local/bin/nettop",
    ):
        release = own_machine.releases
        assert own_machine.run("sh", "-c", damage).returncode == 0
        done = own_machine.run(*installer(folder, OLD))
        assert (done.returncode, own_machine.version()) == (0, OLD)
        assert ("up to date" in done.stdout) == (own_machine.releases == release)
        assert len(own_machine.releases) == 1


def test_a_release_stays_while_a_nettop_runs_from_it(own_machine: Machine, folder: Path) -> None:
    """A release stays while a nettop runs from it, which may still import its modules."""
    old = own_machine.releases[0]
    with own_machine.start("/usr/local/bin/nettop", "--table", "--interval", "3600") as running:
        assert running.stdout
        running.stdout.readline()
        assert own_machine.run(*installer(folder, NEW)).returncode == 0
        assert (own_machine.version(), old in own_machine.releases) == (NEW, True)
        running.terminate()
        running.communicate()
    assert own_machine.run(*installer(folder, NEW)).returncode == 0
    assert old not in own_machine.releases


def test_root_imports_nothing_of_others(machine: Machine, tmp_path: Path) -> None:
    """Root imports nothing from PYTHONPATH or the working directory."""
    (tmp_path / "nettop.py").write_text("raise SystemExit('of others')")
    (tmp_path / "rich.py").write_text("raise SystemExit('of others')")
    done = machine.run(
        "/usr/local/bin/nettop", "--version", prepared=f"cd {tmp_path}", PYTHONPATH=str(tmp_path)
    )
    assert (done.stdout.partition("+")[0], done.stderr) == (f"nettop {OLD}", "")


@pytest.mark.parametrize(
    ("prepared", "code", "cause"),
    [
        (
            "mount -t tmpfs -o size=110m tmpfs /opt && cp -a {opt}/. /opt",
            1,
            "no space left for /opt/nettop (free: ",
        ),
        ("mount -o remount,bind,ro /opt", 1, "is on a read-only file system."),
        (
            "chmod 0 {new}/nettop/cli.py; cap=-dac_override,-dac_read_search; {exec}",
            4,
            "cannot read the checkout {new}: uid 0 lacks a permission",
        ),
        ("mount --bind {opt}/broken.py {ensurepip}", 3, "it has no module ensurepip."),
    ],
    ids=["full disk", "read-only", "unreadable checkout", "no ensurepip"],
)
def test_an_error_names_its_cause(
    machine: Machine, folder: Path, prepared: str, code: int, cause: str
) -> None:
    """An error names its only cause, such as a missing python3-venv."""
    import ensurepip

    (machine.opt / "broken.py").write_text("raise ImportError")
    new = checkout(folder / f"new-{code}", NEW)
    names = {"opt": machine.opt, "new": new, "ensurepip": ensurepip.__file__, "exec": WITHOUT}
    done = machine.run(*installer(folder, new.name), prepared=prepared.format(**names))
    shutil.rmtree(new)
    assert (done.returncode, cause.format(**names) in done.stderr) == (code, True), done.stderr
    assert ("python3-venv" in done.stderr) == ("ensurepip" in cause)
    assert "Done" not in done.stdout
    assert_unchanged(machine)


def test_no_network(machine: Machine, folder: Path) -> None:
    """The error for a missing network names the option that needs none."""
    done = machine.run(*installer(folder, NEW)[:2], **NO_INDEX)
    assert done.returncode == 1
    assert "pip failed: the network or the package server is not reachable." in done.stderr
    assert "--wheels" in done.stderr
    assert_unchanged(machine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(machine: Machine, folder: Path, number: signal.Signals) -> None:
    """An interrupted install prints one line, and leaves no process, no temporary directory, and the earlier nettop."""
    with machine.start(*installer(folder, NEW)) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("[4/7]"):
            pass
        everyone = until(lambda: descendants(process.pid)[:-1], "pip begins")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 128 + number
    assert errors == f"install-deps: interrupted by {number.name}; nettop is unchanged.\n"
    assert not {pid for pid, _, _ in living()} & set(everyone)
    assert_unchanged(machine)


AS_IT_BEGINS = """
set -T
trap '[[ $BASH_COMMAND != "child=\\$!" || $step != "Python packages" ]] || kill -INT $$' DEBUG
"""
"""Has bash interrupt itself when pip is started, and the script has not noted that yet."""


def test_interrupted_as_a_command_begins(machine: Machine, folder: Path, tmp_path: Path) -> None:
    """An interrupt as a command begins ends that command too: nothing continues to install."""
    (tmp_path / "environment").write_text(AS_IT_BEGINS)
    done = machine.run(*installer(folder, NEW), BASH_ENV=str(tmp_path / "environment"))
    assert done.returncode == 130
    assert done.stderr == "install-deps: interrupted by SIGINT; nettop is unchanged.\n"
    assert "[4/7]" in done.stdout
    again = machine.run(*installer(folder, OLD))
    assert (again.returncode, again.stderr) == (0, "")
    assert_unchanged(machine)


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="the distribution has no apt")
def test_an_interrupted_package_manager_ends_what_it_began(machine: Machine, folder: Path) -> None:
    """An interrupted package manager finishes: a stop midway would need manual repair."""
    began, may_end, ended = (machine.temporary / name for name in ("began", "may_end", "ended"))
    for fifo in (began, may_end):
        os.mkfifo(fifo)
    package_manager = machine.temporary / "apt-get"
    package_manager.write_text(
        f"#!/bin/sh\ncase $* in *download-only* | *update) exit ;; esac\n: >{began}\nread line <{may_end}\n: >{ended}\n"
    )
    package_manager.chmod(0o755)
    prepared = (
        f"mount --bind {package_manager} /usr/bin/apt-get && mount --bind /bin/false /usr/bin/dpkg-query"
    )
    with machine.start(installer(folder, NEW)[0], prepared=prepared) as process:
        to_apt = os.open(may_end, os.O_RDWR)  # which does not wait for the other end
        began.read_bytes()
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.readline().startswith("install-deps: interrupted by SIGINT; ")
        os.write(to_apt, b"\n")
        process.communicate(timeout=60 * PATIENCE)
    os.close(to_apt)
    assert (process.returncode, ended.exists()) == (130, True)
    for file in machine.temporary.iterdir():
        file.unlink()
    assert_unchanged(machine)


def test_nothing_stays_of_a_first_install_that_is_interrupted(folder: Path, tmp_path: Path) -> None:
    """An interrupted first install leaves nothing, not even the empty directory."""
    machine = Machine(tmp_path / "machine")
    with machine.start(*installer(folder, NEW)) as process:
        until(lambda: machine.releases, "a release is begun")
        process.terminate()
        process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(machine.opt.iterdir()) == list(machine.bin.iterdir()) == []


def test_the_last_line_is_a_command_that_works(machine: Machine, folder: Path) -> None:
    """The last line is a working command: with sudo if sudo called it, with its path if the caller's PATH lacks it."""
    hidden = "if sudo=$(command -v sudo); then mount --bind /dev/null $sudo; fi"
    sudo = {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    (machine.bin / "sudo").write_text("#!/bin/sh\n")

    def last_words(**how: str) -> str:
        done = machine.run(*installer(folder, OLD), **how)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.rpartition(": ")[2].strip()

    assert last_words() == "nettop"
    assert last_words(PATH="/usr/bin:/bin") == "/usr/local/bin/nettop"
    (machine.bin / "sudo").chmod(0o755)
    assert last_words(**sudo) == "sudo nettop"
    (machine.bin / "sudo").unlink()
    assert last_words(prepared=hidden, **sudo) == "nettop"


def test_on_a_terminal_a_step_counts_its_seconds(own_machine: Machine, folder: Path) -> None:
    """On a terminal a step counts its seconds in one line that is overwritten."""
    command = " ".join(installer(folder, NEW))
    done = own_machine.run("script", "--quiet", "--return", "--command", command, "/dev/null")
    assert done.returncode == 0
    assert done.stdout.count("[5/7] Python packages … ") > 2  # the first, the last, and some in between


def test_a_killed_install_for_development_is_repaired(
    own_machine: Machine, folder: Path, tmp_path: Path
) -> None:
    """The next install repairs a killed development install, whatever .venv was at its start."""
    path = checkout(tmp_path / "checkout", OLD)
    install = (str(path / "scripts" / "install-deps.sh"), *installer(folder, OLD)[1:], "--dev")
    assert "[8/8] Development, in .venv … up to date" not in own_machine.run(*install).stdout
    assert "[8/8] Development, in .venv … up to date" in own_machine.run(*install).stdout
    with (path / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    mark = path / ".venv" / ".nettop-install"
    with own_machine.start(*install) as process:
        until(lambda: not mark.exists(), "the upgrade of .venv begins", deadline_s=120)
        for pid in descendants(process.pid)[::-1]:
            kill(pid)
    shutil.rmtree(next((path / ".venv").glob("lib/python3*/site-packages/rich")))
    rewrite(path / "pyproject.toml", "# changed\n", "")
    done = own_machine.run(*install)
    assert "up to date" not in done.stdout.splitlines()[-3]
    python = str(path / ".venv" / "bin" / "python")
    command = [python, "-I", "-c", "import nettop, rich; print(nettop.__version__)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{OLD}\n"
