# SPDX-License-Identifier: Apache-2.0
"""The host's power meters, found and read in a tree of sysfs that the test makes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.powercap import Meter, Power, find_meters, open_meters, why_no_power

RANGE = 262_143_328_850
"""2^32 - 1 steps of 61 µJ, as the kernel tells it."""
Opener = Callable[[Path], Power]


def zone(root: Path, place: str, name: str, energy: int | str = 0, range_uj: int | str = RANGE) -> Path:
    """Make a zone with its files."""
    made = root / place
    made.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", range_uj)):
        (made / file).write_text(f"{content}\n")
    return made


def count(zone: Path, energy: int | str) -> None:
    """The counter of a zone stands at this."""
    (zone / "energy_uj").write_text(f"{energy}\n")


def names(root: Path) -> list[str]:
    """What the meters are called."""
    return [meter.name for meter in find_meters(root)]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens the meters of a tree; they are closed at the end."""
    made: list[Power] = []

    def opens(root: Path) -> Power:
        made.append(Power(find_meters(root)))
        return made[-1]

    yield opens
    for power in made:
        power.close()


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Zones whose counters may not be opened; root may everything."""
    zones: set[Path] = set()
    opens = os.open

    def refusing(path: Path, *how: int) -> int:
        if Path(path).parent in zones:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opens(path, *how)

    monkeypatch.setattr(os, "open", refusing)
    return zones


# --- which meters ---------------------------------------------------------------------------------------------


def test_packages_and_their_memory_are_told(tmp_path: Path) -> None:
    """Each processor and the memory at it once: no part of a processor, and not the machine around them."""
    (tmp_path / "intel-rapl").mkdir()
    packages = [zone(tmp_path, f"intel-rapl:{number}", f"package-{number}") for number in (0, 1)]
    memory = [zone(tmp_path, f"intel-rapl:{number}:2", "dram", range_uj=65_712_999_613) for number in (0, 1)]
    for number in (0, 1):
        zone(tmp_path, f"intel-rapl:{number}:0", "core")
        zone(tmp_path, f"intel-rapl:{number}:1", "uncore")
    zone(tmp_path, "intel-rapl:2", "psys")
    assert find_meters(tmp_path) == (
        Meter("package-0", packages[0], RANGE),
        Meter("package-0 dram", memory[0], 65_712_999_613),
        Meter("package-1", packages[1], RANGE),
        Meter("package-1 dram", memory[1], 65_712_999_613),
    )


def test_what_is_counted_twice_is_told_once(tmp_path: Path) -> None:
    """Of a package that intel-rapl and intel-rapl-mmio count the first is told; the other where it is alone."""
    for number in (0, 1):
        zone(tmp_path, f"intel-rapl-mmio:{number}", f"package-{number}")
    zone(tmp_path, "intel-rapl:0", "package-0")
    assert [(meter.name, meter.path.name) for meter in find_meters(tmp_path)] == [
        ("package-0", "intel-rapl:0"),
        ("package-1", "intel-rapl-mmio:1"),
    ]


def test_each_die_of_a_package_is_a_meter(tmp_path: Path) -> None:
    """Where a package has several dies each has a zone."""
    for die in (0, 1):
        zone(tmp_path, f"intel-rapl:{die}", f"package-0-die-{die}")
    assert names(tmp_path) == ["package-0-die-0", "package-0-die-1"]


def test_other_control_types_are_left_out(tmp_path: Path) -> None:
    """What does not count a processor's energy, or cannot be told to, is no meter."""
    zone(tmp_path, "dtpm:0", "cpu0-cpufreq")
    zone(tmp_path, "arm-scmi:0", "package")
    zone(tmp_path, "idle-injection:0", "package-0x")
    zone(tmp_path, "intel-rapl:0:0", "dram")
    assert names(tmp_path) == []


@pytest.mark.parametrize("range_uj", ["", "many", "0", "-5"])
def test_without_a_range_there_is_no_meter(tmp_path: Path, range_uj: str) -> None:
    """A counter of which nobody says where it turns tells nothing that can be summed."""
    zone(tmp_path, "intel-rapl:0", "package-0", range_uj=range_uj)
    zone(tmp_path, "intel-rapl:1", "package-1")
    assert names(tmp_path) == ["package-1"]


def test_names_are_safe_to_show(tmp_path: Path) -> None:
    """What stands in the files reaches no terminal as it is."""
    zone(tmp_path, "strange:0", "pack\x1b[31mage\u202e")
    zone(tmp_path, "strange:0:0", "dram")
    assert names(tmp_path) == ["pack␛[31mage\ufffd dram"]


# --- reading --------------------------------------------------------------------------------------------------


def test_microjoules_since_the_start(tmp_path: Path, opened: Opener) -> None:
    """What was counted before is not told; each meter goes on from its own beginning."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_011)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 7)
    power = opened(tmp_path)
    assert power.read() == {"package-0": 0, "package-0 dram": 0}
    count(package, 5_000_111)
    count(memory, 20)
    assert power.read() == {"package-0": 100, "package-0 dram": 13}
    count(package, 6_000_011)
    assert power.read() == {"package-0": 1_000_000, "package-0 dram": 13}


def test_a_counter_that_turns(tmp_path: Path, opened: Opener) -> None:
    """Behind its range a counter begins again, any number of times; the other one does not."""
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900, range_uj=1000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 900)
    power = opened(tmp_path)
    for turned, total in ((100, 200), (99, 1199), (98, 2198)):
        count(first, turned)
        count(second, 900 + total)
        assert power.read() == {"package-0": total, "package-1": total}


@given(st.lists(st.integers(0, 999), max_size=8))
def test_nothing_is_lost_over_turns(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    """Whatever comes between two readings, if it is less than a turn, is in the sum."""
    root = tmp_path_factory.mktemp("powercap")
    package = zone(root, "intel-rapl:0", "package-0", range_uj=1000)
    power = Power(find_meters(root))
    try:
        for total in accumulate(steps):
            count(package, total % 1000)
            assert power.read() == {"package-0": total}
    finally:
        power.close()


def test_a_meter_that_vanishes(tmp_path: Path, opened: Opener) -> None:
    """One that does not answer is left out for that reading, and the others go on; one that comes back does too."""
    first = zone(tmp_path, "intel-rapl:0", "package-0", 10)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 20)
    power = opened(tmp_path)
    count(first, "")
    count(second, 25)
    assert power.read() == {"package-1": 5}
    count(first, 13)
    assert power.read() == {"package-0": 3, "package-1": 5}


def test_a_meter_that_the_kernel_takes_away(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed zone answers ENODEV to who has it open."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    power = opened(tmp_path)

    def gone(*_: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "pread", gone)
    assert power.read() == {}


def test_what_may_not_be_opened_is_said(tmp_path: Path, opened: Opener, forbidden: set[Path]) -> None:
    """A counter that is refused, is gone or tells no number is named with the reason; the others are read."""
    forbidden.add(zone(tmp_path, "intel-rapl:0", "package-0"))
    (zone(tmp_path, "intel-rapl:1", "package-1") / "energy_uj").unlink()
    zone(tmp_path, "intel-rapl:2", "package-2", "nonsense")
    zone(tmp_path, "intel-rapl:3", "package-3")
    power = opened(tmp_path)
    assert power.refused == {
        "package-0": "only root may",
        "package-1": "No such file or directory",
        "package-2": "it tells no number",
    }
    assert power.read() == {"package-3": 0}


def test_counters_are_opened_at_once(tmp_path: Path, opened: Opener, forbidden: set[Path]) -> None:
    """Reading takes no right any more: what is refused later was opened before."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    power = opened(tmp_path)
    forbidden.add(package)
    count(package, 18)
    assert power.read() == {"package-0": 17}


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Closing lets go of all, twice is once, and what told no number was let go of at once."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:1", "package-1", "nonsense")
    before = len(os.listdir("/proc/self/fd"))
    power = Power(find_meters(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    power.close()
    power.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert power.read() == {}


# --- no power -------------------------------------------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    """Where the kernel has no powercap there are no meters, and it says so."""
    root = tmp_path / "powercap"
    assert find_meters(root) == ()
    assert why_no_power(root) == f"this host has no power meter ({root})"


def test_no_meter(tmp_path: Path) -> None:
    """Zones that count no processor are no meters."""
    (tmp_path / "intel-rapl").mkdir()
    zone(tmp_path, "intel-rapl:0", "psys")
    assert why_no_power(tmp_path) == f"this host has no power meter ({tmp_path})"


def test_hidden_meters(tmp_path: Path) -> None:
    """A container is shown the links, and nothing behind them."""
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "masked/intel-rapl:0")
    assert find_meters(tmp_path) == ()
    assert why_no_power(tmp_path).startswith("this host's power meters are hidden (")


def test_meters_that_may_not_be_read(tmp_path: Path, forbidden: set[Path]) -> None:
    """The reason is said once, and not at all where one meter can be read."""
    forbidden.update(zone(tmp_path, f"intel-rapl:{number}", f"package-{number}") for number in (0, 1))
    assert why_no_power(tmp_path) == "this host's power meters cannot be read: only root may"
    zone(tmp_path, "intel-rapl:2", "package-2")
    assert why_no_power(tmp_path) == ""


def test_what_was_opened_early_is_read_without_the_right(
    tmp_path: Path, opened: Opener, forbidden: set[Path]
) -> None:
    """Whoever could open the counters hands them to whoever may not any more, until it lets go of them."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    with open_meters(tmp_path):
        forbidden.add(package)
        assert why_no_power(tmp_path) == ""
        power = opened(tmp_path)
    count(package, 12)
    assert power.read() == {"package-0": 7}
    assert opened(tmp_path).read() == {}
