# SPDX-License-Identifier: Apache-2.0
"""The kernel's functions by address, from example files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nettop.kernel.bpf.symbols import Symbols, are_shown, bounds_of, why_hidden
from nettop.kernel.host.privileges import CAP_SYSLOG

pytestmark = pytest.mark.usefixtures("made_capabilities")

KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000040 t early.isra.0
ffffffff81000080 T tcp_v4_rcv
ffffffff810000f0 t __pfx_udp_rcv
ffffffff81000100 W udp_rcv
ffffffff81000200 D some_data
ffffffff81000300 T tcp_v4_rcv.cold
ffffffff81000400 T _etext
ffffffffc0201000 t nft_do_chain\t[nf_tables]
ffffffffc0101000 t bpf_prog_6deef7357e7b4530\t[bpf]
"""
MODULES = "nf_tables 262144 12 nft_ct, Live 0xffffffffc0200000\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Return an example /proc."""
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    (tmp_path / "modules").write_text(MODULES)
    return tmp_path


@pytest.fixture
def symbols(proc: Path) -> Symbols:
    """Return the functions of the example kernel."""
    made = Symbols(proc)
    assert made.refresh()
    return made


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (0xFFFFFFFF81000000, ("_stext", 0)),
        (0xFFFFFFFF8100003F, ("_stext", 0x3F)),
        (0xFFFFFFFF81000040, ("early.isra.0", 0)),
        (0xFFFFFFFF810000F8, ("tcp_v4_rcv", 0x78)),
        (0xFFFFFFFF81000210, ("udp_rcv", 0x110)),
        (0xFFFFFFFF81000301, ("tcp_v4_rcv.cold", 1)),
        (0xFFFFFFFFC0201234, ("nft_do_chain [nf_tables]", 0x234)),
        (0xFFFFFFFFC0101000, ("bpf_prog_6deef7357e7b4530 [bpf]", 0)),
        (0, None),
        (0xFFFFFFFF80FFFFFF, None),
        (0xFFFFFFFF81100400, None),
        (0xFFFFFFFFFFFFFFFF, None),
    ],
)
def test_functions_by_address(symbols: Symbols, address: int, expected: tuple[str, int] | None) -> None:
    """An address is in the nearest function before it, with suffix and module; data and far addresses are in none."""
    assert symbols.find(address) == expected


def test_read_again_only_when_modules_changed(proc: Path, symbols: Symbols) -> None:
    """Functions follow the loaded modules; a changed use count alone triggers no reading."""
    assert not symbols.refresh()
    (proc / "modules").write_text(MODULES.replace(" 12 ", " 13 "))
    assert not symbols.refresh()
    (proc / "modules").write_text("veth 32768 0 - Live 0xffffffffc0300000\n")
    (proc / "kallsyms").write_text("ffffffffc0300010 t veth_xmit\t[veth]\n")
    assert symbols.refresh()
    assert symbols.find(0xFFFFFFFFC0300020) == ("veth_xmit [veth]", 0x10)
    assert symbols.find(0xFFFFFFFFC0201234) is None


@pytest.fixture
def hiding(proc: Path) -> Path:
    """Return a /proc without the right to see addresses: all of them are 0."""
    hidden = "".join(f"{0:016x}{line[16:]}\n" for line in KALLSYMS.splitlines())
    (proc / "kallsyms").write_text(hidden)
    return proc


def test_hidden_addresses(proc: Path, hiding: Path) -> None:
    """If all addresses are 0, functions are known by name only."""
    assert not are_shown(hiding)
    made = Symbols(hiding, {"early", "udp_rcv", "tcp_v6_rcv"})
    assert made.refresh()
    assert (len(made), made.find(5), made.present) == (0, None, {"early", "udp_rcv"})
    assert bounds_of(("udp_rcv",), hiding) is None


def test_names_of_what_is_present(proc: Path) -> None:
    """The existing ones of the wanted functions are found, without suffix or module; data does not count."""
    assert are_shown(proc)
    made = Symbols(proc, {"early", "nft_do_chain", "some_data", "udp_rcv", "tcp_v6_rcv", "tcp_v4"})
    assert not made.present and not len(made)
    made.refresh()
    assert made.present == {"early", "nft_do_chain", "udp_rcv"}


def test_bounds_of_what_is_wanted(proc: Path) -> None:
    """A function ends where the next one begins; its rarely used part elsewhere does not count."""
    assert bounds_of(("tcp_v4_rcv",), proc) == (0xFFFFFFFF81000080, 0x80)
    assert bounds_of(("early", "tcp_v4_rcv"), proc) == (0xFFFFFFFF81000040, 0x40)
    assert bounds_of(("udp_rcv_skb",), proc) is None


def test_the_first_name_that_exists_is_preferred(proc: Path) -> None:
    """A newer name counts before an older one, wherever they are."""
    assert bounds_of(("udp_rcv", "tcp_v4_rcv"), proc) == (0xFFFFFFFF81000100, 0x200)
    assert bounds_of(("udp_rcv_skb", "tcp_v4_rcv"), proc) == (0xFFFFFFFF81000080, 0x80)


def test_a_missing_file_gives_no_symbols(tmp_path: Path) -> None:
    """A kernel without kallsyms, or without modules, is no error."""
    made = Symbols(tmp_path)
    assert made.refresh()
    assert not made.refresh()
    assert len(made) == 0 and not are_shown(tmp_path)


def test_malformed_lines_are_skipped(proc: Path) -> None:
    """Lines that are no symbols do not hide others, and names are made safe to show."""
    text = b"\n\nnonsense\nffffffff8100 T\nxyz T name\nffffffff8100050g T name\n" + b"\xff\xfe\n"
    (proc / "kallsyms").write_bytes(text + b"ffffffff81000600 T odd\x1b\xff\n")
    made = Symbols(proc)
    made.refresh()
    assert len(made) == 1
    assert made.find(0xFFFFFFFF81000600) == ("odd␛\N{REPLACEMENT CHARACTER}", 0)


MOUNTS = """22 1 0:20 / /proc rw shared:1 - proc proc rw{option}
23 1 0:21 / /sys rw shared:2 - sysfs sysfs rw
"""
MASKED = "31 22 0:5 /null /proc/kallsyms rw - devtmpfs devtmpfs rw\n"


PLAIN = MOUNTS.format(option="")


@pytest.mark.parametrize(
    ("content", "mounts", "restriction", "held", "what", "remedy"),
    [
        (None, MOUNTS.format(option=",subset=pid"), None, True, "mounted with subset=pid", "ProcSubset=all"),
        (None, PLAIN, "1", True, "no such file", ""),
        ("", PLAIN + MASKED, "1", True, "devtmpfs mounted at /proc/kallsyms", "umount /proc"),
        ("0", PLAIN, "2", False, "kernel.kptr_restrict=2", "sysctl kernel.kptr_restrict=1"),
        ("0", PLAIN, "1", False, "needs CAP_SYSLOG", "CAP_SYSLOG"),
        ("0", PLAIN, None, False, "needs CAP_SYSLOG", "CAP_SYSLOG"),
    ],
    ids=("subset", "no file", "masked", "nobody", "capability", "unknown"),
)
def test_why_symbols_are_hidden(
    tmp_path: Path,
    *,
    content: str | None,
    mounts: str,
    restriction: str | None,
    held: bool,
    what: str,
    remedy: str,
) -> None:
    """Name the one cause, not those that might be."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(mounts)
    (proc / "thread-self").mkdir()
    (proc / "thread-self/status").write_text(f"CapEff:\t{(1 << CAP_SYSLOG) * held:016x}\n")
    if content is not None:
        (proc / "kallsyms").write_text(content and f"{0:016x} T _text\n")
    if restriction is not None:
        (proc / "sys/kernel").mkdir(parents=True)
        (proc / "sys/kernel/kptr_restrict").write_text(f"{restriction}\n")
    error = why_hidden(proc)
    assert what in error.what
    assert remedy in error.remedy
    named = [
        cause for cause in ("kptr_restrict", "CAP_SYSLOG", "subset=pid", "devtmpfs") if cause in error.what
    ]
    assert len(named) <= 1
