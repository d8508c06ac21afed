# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled programs: entries that nobody but root could have written are used, all others are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import program_cache
from nettop.kernel.bpf.compiled import Compiled, Function, find_operands, marks_of
from nettop.kernel.bpf.program_cache import Distrusted
from nettop.kernel.bpf.program_text import ProgramText

CODE = bytes(range(16)) * 4
FUNCTION = Function("drop", 26, 23, 4711, CODE, {8: "counted"}, {24: "NAMESPACE"})
COMPILED = Compiled(
    {"counted": bpf.MapAttributes(5, 4, 8, 256, 0)}, {"drop": FUNCTION}, {"other": "it is missing"}
)
"""A program as the compiler returns it."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a cache that belongs to whoever runs the tests, on a kernel of their own."""
    directory = tmp_path / "nettop"
    monkeypatch.setattr(program_cache, "DIRECTORY", directory)
    monkeypatch.setattr(program_cache, "OWNER", os.geteuid())
    use_kernel(monkeypatch, "6.1.0")
    return directory


def use_kernel(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """Pretend to run on this kernel."""
    monkeypatch.setattr(program_cache, "_environment", lambda: [release])


@pytest.fixture
def text(tmp_path: Path) -> ProgramText:
    """Return a text of one source."""
    source = tmp_path / "drops.bpf.c"
    source.write_text("int drop(void) { return 0; }\n")
    return ProgramText((str(source),), "", (), {"drop": 26}, defines={"MAX": 5}, values={"NAMESPACE": 7})


@pytest.fixture
def entry(cache: Path, text: ProgramText) -> Path:
    """Store the program and return its file."""
    program_cache.store(text, COMPILED)
    (file,) = cache.iterdir()
    return file


def test_a_stored_program_is_found_whole(entry: Path, text: ProgramText) -> None:
    """What is found equals what was stored, whatever is set at the load, and everybody may read it."""
    assert program_cache.find(text) == COMPILED
    assert (entry.stat().st_mode & 0o777, entry.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    assert program_cache.check() == (1, [])
    at_load = replace(text, values={"NAMESPACE": 8}, entries={"counted": 1 << 20}, shared=("counted",))
    assert program_cache.find(at_load) == COMPILED


@pytest.mark.parametrize(
    "change",
    [
        {"defines": {"MAX": 6}},
        {"header": "struct row {};\n"},
        {"functions": {"drop": 5}},
        {"values": {"OTHER": 7}},
        {"maps": ("counted",)},
        {"needs": ("bpf_loop",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_is_compiled_is_in_the_key(
    entry: Path, text: ProgramText, change: dict[str, object]
) -> None:
    """Another text, kernel or compiler has another entry."""
    assert program_cache.find(replace(text, **change)) is None  # type: ignore[arg-type]


def test_a_changed_source_is_compiled_again(entry: Path, text: ProgramText) -> None:
    """A text whose source has changed is not found."""
    Path(text.sources[0]).write_text("int drop(void) { return 1; }\n")
    assert program_cache.find(text) is None


def test_another_kernel_has_its_own_entries(
    entry: Path, text: ProgramText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program compiled for another kernel is never used, and stays there; nor does one count as complete."""
    use_kernel(monkeypatch, "6.12.0")
    assert program_cache.find(text) is None
    assert not program_cache.is_complete()
    program_cache.store(text, replace(COMPILED, missing={}))
    program_cache.set_complete()
    assert program_cache.is_complete()
    use_kernel(monkeypatch, "6.1.0")
    assert program_cache.find(text) == COMPILED and not program_cache.is_complete()
    assert program_cache.check() == (2, [])


# --- entries that are not trusted -------------------------------------------------------------------------------


def refused(text: ProgramText) -> str:
    """Return why the only entry is ignored; assert that it is not used."""
    assert program_cache.find(text) is None
    kept, (why,) = program_cache.check()
    assert kept == 0
    return why


def test_every_damaged_entry_is_ignored(entry: Path, text: ProgramText) -> None:
    """A file that is cut, or has another byte, anywhere, is damaged."""
    whole = entry.read_bytes()
    for at in range(len(whole)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            entry.write_bytes(content)
            assert program_cache.find(text) is None, at
    assert "is damaged" in refused(text)


def test_swapped_entries_are_noticed(entry: Path, text: ProgramText) -> None:
    """A sound program under the name of another text is not loaded for it."""
    other = replace(text, defines={"MAX": 6})
    program_cache.store(other, replace(COMPILED, missing={}))
    (second,) = set(entry.parent.iterdir()) - {entry}
    first, its = entry.read_bytes(), second.read_bytes()
    entry.write_bytes(its)
    second.write_bytes(first)
    assert program_cache.find(text) is program_cache.find(other) is None
    assert [why.partition(" is ")[2] for why in program_cache.check()[1]] == ["damaged"] * 2


def test_another_format_is_not_taken_for_a_program(entry: Path, text: ProgramText) -> None:
    """A sound file with other content, as of another version, is ignored."""
    key = bytes.fromhex(entry.name)
    for content in (b"", b"[]", b"{}", b"\xff", b'{"tables": {"a": [1]}, "functions": {}, "missing": {}}'):
        entry.write_bytes(program_cache._digest(key, content) + content)
        assert "is from another version of nettop" in refused(text)


AS_ROOT = [True] if os.geteuid() == 0 else []
"""One element for root, who alone may give files away."""


def put_link(path: Path) -> None:
    """Replace a file or directory by a link to it."""
    path.symlink_to(path.rename(path.parent.parent / "target"))


def put_fifo(entry: Path) -> None:
    """Replace the entry by a FIFO, whose reader would wait."""
    entry.unlink()
    os.mkfifo(entry)


def give_away(path: Path) -> None:
    """Give a file or directory to another user."""
    os.chown(path, 4711, -1)


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (put_link, "cannot be read"),
        (put_fifo, "is not a regular file"),
        (lambda entry: entry.chmod(0o646), "can be changed by others than root (mode 646)"),
        *((give_away, "belongs to user 4711, not to root") for _ in AS_ROOT),
    ],
)
def test_what_others_may_have_written_is_ignored(
    entry: Path, text: ProgramText, attack: Callable[[Path], None], why: str
) -> None:
    """An entry must be a regular file of root's that only root may change."""
    attack(entry)
    assert why in refused(text)
    program_cache.store(text, COMPILED)  # compiled again, it takes the place of the other
    assert program_cache.find(text) == COMPILED


@pytest.mark.parametrize(
    "attack",
    [put_link, lambda cache: cache.chmod(0o777), *(give_away for _ in AS_ROOT)],
)
def test_a_directory_of_others_is_not_used(
    entry: Path, text: ProgramText, attack: Callable[[Path], None]
) -> None:
    """Where others may create files, nothing is read or written."""
    cache = entry.parent
    attack(cache)
    assert program_cache.find(text) is None
    before = sorted(cache.iterdir())
    with pytest.raises((OSError, Distrusted)):
        program_cache.store(replace(text, header="// another\n"), COMPILED)
    with pytest.raises((OSError, Distrusted)):
        program_cache.check()
    assert sorted(cache.iterdir()) == before


# --- writing ----------------------------------------------------------------------------------------------------


def test_an_entry_appears_whole_or_not_at_all(
    cache: Path, text: ProgramText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If writing fails, as on a full disk, no file is left."""
    cache.mkdir()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(OSError, match="No space left"):
            program_cache.store(text, COMPILED)
    assert list(cache.iterdir()) == []
    assert program_cache.find(text) is None


def test_the_oldest_entries_make_room(
    cache: Path, text: ProgramText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of entries is bounded; what a killed nettop left unfinished is removed too."""
    monkeypatch.setattr(program_cache, "MAX_ENTRIES", 3)
    cache.mkdir()
    unfinished = cache / f".{'0' * 64}.4711"
    unfinished.write_bytes(b"half")
    os.utime(unfinished, (1, 1))
    texts = [replace(text, defines={"MAX": number}) for number in range(5)]
    for age, source in enumerate(texts):
        program_cache.store(source, COMPILED)
        (newest,) = (file for file in cache.iterdir() if file.stat().st_mtime > 1e9)
        os.utime(newest, (2 + age, 2 + age))
    assert [program_cache.find(one_text) is not None for one_text in texts] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert not unfinished.exists()


# --- operands -----------------------------------------------------------------------------------------------------


def test_tables_and_values_are_found_in_instructions() -> None:
    """Loads of 64 bits are told apart: a table by its descriptor, a value by its mark, and all other numbers."""

    def load(register: int, number: int) -> bytes:
        low, high = number & 0xFFFFFFFF, number >> 32
        return (
            bytes([0x18, register, 0, 0]) + low.to_bytes(4, "little") + bytes(4) + high.to_bytes(4, "little")
        )

    marks = marks_of({"PID": 1, "NAMESPACE": 2})
    code = (
        load(0x11, 9)
        + load(0x02, marks["PID"])
        + load(0x03, 4711)
        + bytes(8)
        + load(0x04, marks["NAMESPACE"])
    )
    assert find_operands(code, {9: "counted"}, marks) == ({0: "counted"}, {16: "PID", 56: "NAMESPACE"})
