# SPDX-License-Identifier: Apache-2.0
"""The loader and the compiler on the real kernel: their results, and their reports of each failure."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nettop.errors import SourceFailed, Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import compiled, program_cache
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.compiled import LoadFailed
from nettop.kernel.bpf.compiling import Compiler, no_loading
from nettop.kernel.bpf.program import Loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.connections.programs import events_text, table_text

pytestmark = pytest.mark.kernel


def text_of(tmp_path: Path, source: str) -> ProgramText:
    """Return the connections probe's text with another program after its header."""
    file = tmp_path / "trial.bpf.c"
    file.write_text(source)
    return replace(table_text(), sources=(str(file),), functions={"bpf_iter__tcp": 26}, maps=())


def iterator(body: str) -> str:
    """Return a program over the TCP table with this body."""
    return (
        "struct bpf_iter__tcp { struct bpf_iter_meta *meta; struct sock_common *sk; };\nBPF_ITER(tcp) {"
        + body
        + "}"
    )


def test_a_compile_error_has_the_compilers_words(tmp_path: Path) -> None:
    """A compile error has the compiler's file, line and reason."""
    with pytest.raises(LoadFailed) as failure:
        Loader().load(text_of(tmp_path, "int broken = ;\n"))
    assert "trial.bpf.c:1:14: error: expected expression" in failure.value.what


def test_a_refusal_has_the_verifiers_words(tmp_path: Path) -> None:
    """The error for a program that the kernel refuses has the verifier's reason."""
    with pytest.raises(LoadFailed) as failure:
        Loader().load(text_of(tmp_path, iterator("return *(int *)8;")))
    assert "bpf_iter__tcp" in failure.value.what
    assert "invalid mem access" in failure.value.what


def test_a_member_that_this_kernel_lacks_is_named(tmp_path: Path) -> None:
    """If a slice cannot be made, the error is an unsupported kernel, and names the missing member."""
    text = replace(table_text(), slices=(Slice("tcp_sock", {"nothing": "no_such_member"}, {}),))
    with pytest.raises(Unsupported, match="no_such_member"):
        Loader().load(text)


def test_a_compiler_that_is_killed_before_it_reads(nothing_cached: None) -> None:
    """Requests after a compiler's death get the same error, so that no mechanism counts as refused."""
    with closing(Loader()) as loader:
        loader._compiler = Compiler()
        os.kill(loader._compiler._child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, loader._compiler._child.pid, os.WSTOPPED)
        loader.request(table_text())  # which nobody reads: the kernel resets the connection then
        os.kill(loader._compiler._child.pid, signal.SIGKILL)
        for _ in range(2):
            loader.request(table_text())
        for _ in range(3):
            with pytest.raises(SourceFailed, match="compiler exited"):
                loader.answer()


@pytest.mark.walks
def test_loading_is_cancelled_from_another_thread(nothing_cached: None) -> None:
    """Cancelling from another thread gives waiters an error, not a refusal; later requests load as usual."""
    with closing(Loader()) as loader, ThreadPoolExecutor(1) as sampler:
        loader._compiler = Compiler()
        os.kill(loader._compiler._child.pid, signal.SIGSTOP)  # it will not answer
        loader.request(table_text())
        answer = sampler.submit(loader.answer)
        with no_loading():
            with pytest.raises(SourceFailed, match="nettop is exiting"):
                answer.result(timeout=30)
            with pytest.raises(SourceFailed, match="nettop is exiting"):
                Loader()
        Loader().load(table_text()).close()


@pytest.mark.walks
def test_the_end_waits_for_one_program_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier takes seconds for all programs of a lens: those that remain are not loaded while nettop exits."""
    load, loaded = compiled._load, []
    with ExitStack() as ending:

        def end_meanwhile(function: compiled.Function, *how: Any) -> int:
            loaded.append(function.name)
            if len(loaded) == 1:
                ending.enter_context(no_loading())
            return load(function, *how)

        monkeypatch.setattr(compiled, "_load", end_meanwhile)
        with closing(Loader()) as loader:
            loader.request(table_text())
            with pytest.raises(SourceFailed, match="nettop is exiting"):
                loader.answer()
    assert len(loaded) == 1


@pytest.mark.walks
def test_programs_share_tables_and_have_their_own_values(nothing_cached: None) -> None:
    """A text loaded later uses the tables of earlier ones; the size of a table and a number are set at the load."""
    with closing(Loader()) as loader:
        loader.request(table_text())
        loader.request(events_text(1 << 16, followed=4711))
        loader.request(events_text(1 << 18, followed=4712))
        walks, first, second = (loader.answer() for _ in range(3))
    assert not {"connections", "reader"} & first.maps.keys()
    assert {"connections", "reader"} <= walks.maps.keys()
    sizes = [bpf.map_attributes(events.maps["events"]).entries for events in (first, second)]
    assert sizes == [1 << 16, 1 << 18]
    assert len(list(program_cache.DIRECTORY.iterdir())) == 2, "one entry serves both"
    for program in (walks, first, second):
        program.close()
