# SPDX-License-Identifier: Apache-2.0
"""The versions of bcc that the compiler accepts."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nettop.errors import Unsupported, out_of_memory
from nettop.kernel.bpf import compiler

COMPILER = SimpleNamespace(dump_func=None)


def called(version: str | None) -> SimpleNamespace:
    """Return a module that looks like bcc."""
    return SimpleNamespace(BPF=COMPILER, **({} if version is None else {"__version__": version}))


@pytest.mark.parametrize("version", ["0.26.0", "0.29.1+g1a2b3c4", "1.0.0", "EAD-HASH-NOTFOUND", None])
def test_bcc_that_will_do(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A recent version is accepted, and so is a build without a number."""
    bcc = called(version)
    monkeypatch.setitem(sys.modules, "bcc", bcc)
    assert compiler.import_bcc() is bcc


@pytest.mark.parametrize("version", ["0.25.0+ds", "0.9.0"])
def test_bcc_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The error for an old version names it, the required version and the remedy."""
    monkeypatch.setitem(sys.modules, "bcc", called(version))
    with pytest.raises(
        Unsupported, match=f"bcc {re.escape(version)} is too old: nettop needs 0.26 or later"
    ) as refusal:
        compiler.import_bcc()
    assert "install-deps.sh" in refusal.value.remedy


@pytest.mark.parametrize(
    "stub", [SimpleNamespace(__path__=["/usr/bcc"]), SimpleNamespace(__file__="/usr/bcc", BPF=object)]
)
def test_a_module_that_is_not_the_compiler(monkeypatch: pytest.MonkeyPatch, stub: SimpleNamespace) -> None:
    """The error for a wrong module has its path, and says to remove it, not to install over it."""
    monkeypatch.setitem(sys.modules, "bcc", stub)
    with pytest.raises(Unsupported, match="/usr/bcc is not the BPF compiler") as refusal:
        compiler.import_bcc()
    assert "remove /usr/bcc" in refusal.value.remedy


@pytest.mark.parametrize("content", [None, ""])
def test_a_program_that_is_lost(tmp_path: Path, content: str | None) -> None:
    """The error for a missing program has its file, and how to restore it."""
    source = tmp_path / "events.bpf.c"
    if content is not None:
        source.write_text(content)
    with pytest.raises(Unsupported) as refusal:
        compiler._text_of(source)
    assert f"{source}, which is part of nettop" in refusal.value.what
    assert refusal.value.remedy


def test_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory, the limit of the address space is named if there is one."""
    for limit, is_named in ((1 << 28, True), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        for why in (
            "MemoryError",
            "libLLVM-14.so.1: failed to map segment from shared object",
            "terminate called after throwing an instance of 'std::bad_alloc'",
            "LLVM ERROR: Unable to allocate section memory!",
        ):
            error = out_of_memory("the compiler exited", why)
            assert (error is not None) == is_named
            assert error is None or ("268,435,456 bytes" in error.what and "ulimit -v" in error.remedy)
        assert out_of_memory("the compiler exited", "killed") is None
