# SPDX-License-Identifier: Apache-2.0
"""Kernel functions under every name that a compiler gives them."""

from pathlib import Path

import pytest

from nettop.errors import Unsupported
from nettop.kernel.bpf import kprobes

NAME = "tcp_v4_connect"


def root_with(folder: Path, *symbols: str) -> Path:
    """Return a host with these lines in /proc/kallsyms, after an address and before another; of code by default."""
    lines = [symbol if " " in symbol else f"t {symbol}" for symbol in ("_stext", *symbols)]
    path = folder / "proc/kallsyms"
    path.parent.mkdir()
    path.write_text("".join(f"0000000000000000 {line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("symbols", "actual"),
    [
        ([NAME], [NAME]),
        ([f"T {NAME}\t[tcp]"], [NAME]),
        ([f"w {NAME}"], [NAME]),
        ([f"t {NAME}.isra.0\t[tcp]"], [f"{NAME}.isra.0"]),
        ([NAME, f"{NAME}.constprop.0"], [NAME, f"{NAME}.constprop.0"]),
        ([f"{NAME}.constprop.1", f"{NAME}.constprop.0"], [f"{NAME}.constprop.0", f"{NAME}.constprop.1"]),
        ([f"{NAME}.lto_priv.0.llvm.123"], [f"{NAME}.lto_priv.0.llvm.123"]),
        ([NAME, f"{NAME}.cold", f"{NAME}.part.0"], [NAME]),
        ([NAME, f"d {NAME}", f"__{NAME}", f"{NAME}_v2", f"__pfx_{NAME}"], [NAME]),
    ],
)
def test_spellings(tmp_path: Path, symbols: list[str], actual: list[str]) -> None:
    """All clones of a function are found, in the kernel and its modules, and nothing else."""
    assert kprobes.symbols_of(NAME, root_with(tmp_path, *symbols)) == tuple(actual)


@pytest.mark.parametrize(
    ("symbols", "why"),
    [
        ([f"{NAME}.cold"], f"this kernel has only parts of {NAME}: {NAME}.cold"),
        (
            [f"{NAME}.part.0", f"{NAME}.isra.0.cold"],
            f"this kernel has only parts of {NAME}: {NAME}.isra.0.cold, {NAME}.part.0",
        ),
        ([NAME, f"t {NAME}\t[other]"], f"this kernel has 2 functions named {NAME}"),
        ([f"d {NAME}", "vfs_read"], f"this kernel has no function {NAME}"),
    ],
)
def test_symbols_that_are_not_the_function(tmp_path: Path, symbols: list[str], why: str) -> None:
    """A part of a function, an ambiguous name or a missing one is rejected."""
    with pytest.raises(Unsupported) as refusal:
        kprobes.symbols_of(NAME, root_with(tmp_path, *symbols))
    assert refusal.value.what == why


def test_why_a_function_that_types_describe_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function in BTF but without a symbol has only other names, or was inlined."""
    monkeypatch.setattr(kprobes, "symbols_of", lambda function: (f"{function}.isra.0",))
    assert kprobes.why_not_found(NAME) == f"this kernel has {NAME} only as {NAME}.isra.0"
    monkeypatch.undo()
    assert (
        kprobes.why_not_found("nettop_no_such_function")
        == "this kernel has no function nettop_no_such_function"
    )


@pytest.mark.parametrize("content", ["", None])
def test_names_that_are_hidden(tmp_path: Path, content: str | None) -> None:
    """If /proc hides names, the kernel may still have the function."""
    (tmp_path / "proc").mkdir()
    if content is not None:
        (tmp_path / "proc/kallsyms").write_text(content)
    with pytest.raises(Unsupported, match="/proc/kallsyms") as refusal:
        kprobes.symbols_of(NAME, tmp_path)
    assert "no function" not in refusal.value.what


def test_a_kernel_without_kprobes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without the kprobe device no probe is opened."""
    monkeypatch.setattr(kprobes, "KPROBES", kprobes.KPROBES.with_name("none"))
    with pytest.raises(Unsupported, match="this kernel has no kprobes"):
        kprobes.open_probes(NAME, at_return=True)
