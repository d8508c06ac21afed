# SPDX-License-Identifier: Apache-2.0
"""`nettop bundle`: what is in the file, who may read it, and that it can be replayed."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.cli import run
from nettop.commands import bundle as command
from nettop.errors import ExitCode
from nettop.output.bundle import Cutter
from nettop.recording import writer
from nettop.recording.chunks import Group
from nettop.recording.reader import Readings
from nettop.recording.recording import Recording
from nettop.recording.redaction.redactor import Redactor
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots import own_lenses
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Snapshot
from tests.builders.demo import DEMO
from tests.builders.replaying import no_probes, said
from tests.unit.build import make_frame, make_rows
from tests.unit.recorded import assert_same_rows, opened, random_readings, read_back, recorded
from tests.unit.recordings import at_second, record

READINGS = 30


def snapshots() -> list[Snapshot]:
    """Return readings a second apart."""
    return [
        at_second(make_frame([{"id": 1, "process": "acme", "bytes_sent": second}]).now, second)
        for second in range(READINGS)
    ]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a recording of several groups in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "READINGS_PER_GROUP", 8)
    events = {at: make_rows([{"id": at, "process": f"p{at}"}], EVENTS) for at in (3, 25)}
    return record(tmp_path / "r.nettop", snapshots(), events)


def bundled(*words: str, code: ExitCode = ExitCode.DONE) -> dict[str, str]:
    """Make a bundle, and return its texts by name."""
    assert run(["bundle", *words, "-o", "b.tar.gz"], no_probes) == code
    assert stat.S_IMODE(Path("b.tar.gz").stat().st_mode) == 0o600  # it may have addresses and names of people
    return members(Path("b.tar.gz").read_bytes())


def members(content: bytes) -> dict[str, str]:
    """Return the members of a bundle as text."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        texts = {}
        for entry in archive:
            assert (entry.uid, entry.uname, entry.mode) == (0, "", 0o600)
            file = archive.extractfile(entry)
            assert file is not None
            texts[entry.name.removeprefix("nettop-bundle/")] = file.read().decode(errors="replace")
        return texts


def replayed(path: str, capfd: pytest.CaptureFixture[str]) -> list[int]:
    """Return what a replay shows of each reading."""
    capfd.readouterr()
    assert run(["replay", path, "--format", "jsonl", "--columns", "bytes_sent"], no_probes) == ExitCode.DONE
    return [json.loads(line)["bytes_sent"] for line in capfd.readouterr().out.splitlines()]


# --- what is in it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        ([], 0, READINGS - 1),
        (["--last", "5"], READINGS - 6, READINGS - 1),
        (["--at", "14:00:10", "--last", "4s"], 10, 14),
        (["--at", "14:00:20"], 20, READINGS - 1),
        (["--at", "begin", "--last", "2h"], 0, READINGS - 1),
    ],
)
def test_the_wanted_part_is_in_it(
    words: list[str], first: int, last: int, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bundle the end of the recording, or what follows a moment; it replays like any recording."""
    texts = bundled(str(path), *words)
    assert replayed("b.tar.gz", capfd) == list(range(first, last + 1))
    assert list(texts) == ["README.txt", "findings.txt", "recording.nettop"]
    span = f"from 2026-11-28 14:00:{first:02} to 2026-11-28 14:00:{last:02} UTC"
    assert texts["README.txt"].startswith(f"b.tar.gz: web-1 {span}, by nettop ")
    assert "doctor.txt        left out" in texts["README.txt"]
    assert texts["findings.txt"] == "the recording has no findings\n"


def test_a_bundle_of_a_bundle(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Accept a bundle wherever a recording can be named."""
    bundled(str(path), "--last", "9s")
    assert run(["bundle", "b.tar.gz", "--last", "3s", "-o", "c.tar.gz"], no_probes) == ExitCode.DONE
    assert replayed("c.tar.gz", capfd) == list(range(READINGS - 4, READINGS))


def test_findings_are_those_of_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Write to findings.txt what `nettop check --from` prints of the bundle."""
    monkeypatch.chdir(tmp_path)
    texts = bundled(str(DEMO))
    capfd.readouterr()
    assert run(["check", "--from", "b.tar.gz"], no_probes) == ExitCode.FAILURE
    assert texts["findings.txt"] == capfd.readouterr().out
    assert "nettop replay b.tar.gz --at" in texts["findings.txt"]


def test_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Replace names consistently in the recording, the texts and the file's name."""
    monkeypatch.chdir(tmp_path)
    path = record(tmp_path / "r.nettop", snapshots())
    assert run(["bundle", str(path), "--redact"], no_probes) == ExitCode.DONE
    (made,) = tmp_path.glob("*.tar.gz")
    texts = members(made.read_bytes())
    host = made.name.removeprefix("nettop-").rpartition("-")[0]
    assert host.startswith("host-")
    assert texts["README.txt"].startswith(f"{made.name}: {host} from")
    capfd.readouterr()
    assert run(["replay", str(made), "--format", "jsonl"], no_probes) == ExitCode.DONE
    shown = capfd.readouterr().out + "".join(texts.values())
    assert '"process":"proc-' in shown
    assert not any(word in shown for word in ("acme", "web-1", "203.0.113.9"))


def test_texts_of_a_redacted_bundle_do_not_say_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Omit paths, which may name a user, a customer or a host."""
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "acme-db1.tar.gz"
    assert run(["bundle", str(DEMO), "--redact", "-o", str(output)], no_probes) == ExitCode.DONE
    texts = members(output.read_bytes())
    assert "nettop replay nettop-host-" in texts["findings.txt"]
    assert "nettop replay nettop-host-" in texts["README.txt"]
    assert not any("acme" in text or str(tmp_path) in text for text in texts.values())


def test_the_same_input_makes_the_same_file(path: Path) -> None:
    """Make identical bundles of identical input, without a trace of who made them."""
    bundled(str(path))
    first = Path("b.tar.gz").rename("first").read_bytes()
    bundled(str(path))
    assert Path("b.tar.gz").read_bytes() == first


@given(lens=st.sampled_from(own_lenses()), seed=st.integers(0, 2**32))
def test_a_copy_has_the_same_readings(lens: Lens, seed: int) -> None:
    """Copy all readings and each event once."""
    taken = random_readings(lens, seed, 8)
    copy = bytearray()
    with opened(recorded(taken)) as file:
        recording = Recording([file])
        cutter = Cutter(recording, recording.begin_ns, recording.end_ns)
        cutter.copy_to(Sink(copy.extend), lambda _: None)
    assert cutter.readings == {lens.id: 8}
    with opened(bytes(copy)) as file:
        readings = Readings(file, lens)
        for each in taken:
            reading = read_back(readings, each)
            for batch, given_batch in zip(reading.events, each.batches, strict=True):
                assert_same_rows(batch, given_batch)


def test_another_boot_is_another_group() -> None:
    """Begin a group for each boot of the host."""
    content, copy = bytearray(), bytearray()
    for second, boot in enumerate(("a", "a", "b")):
        origin = Group(("connections",), 1.0, "0", {"boot_id": boot})
        RecordingWriter(Sink(content.extend), origin).write(snapshots()[second])
    with opened(bytes(content)) as file:
        recording = Recording([file])
        Cutter(recording, 0, recording.end_ns).copy_to(Sink(copy.extend), lambda _: None)
    with opened(bytes(copy)) as file:
        assert [placed.group.host["boot_id"] for placed in file.groups] == ["a", "b"]


def test_damage_is_said(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bundle what can be read, and report in README how much cannot."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    texts = bundled(str(path), code=ExitCode.SOURCE)
    assert 0 < len(replayed("b.tar.gz", capfd)) < READINGS
    assert "The recording is damaged, and this is not in the bundle:\nat byte" in texts["README.txt"]


# --- doctor -------------------------------------------------------------------------------------------------------


def test_doctor_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add doctor's report if the recording is of this host, unless --no-doctor is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_doctor", lambda _: "all is well\n")
    path = tmp_path / "here.nettop"
    origin = Group(("connections",), 1.0, "0", {"name": os.uname().nodename})
    with path.open("wb") as file:
        RecordingWriter(Sink(file.write), origin).write(snapshots()[0])
    texts = bundled(str(path))
    assert texts["doctor.txt"] == "all is well\n"
    assert "doctor.txt        nettop doctor on this host" in texts["README.txt"]
    Path("b.tar.gz").unlink()
    assert "doctor.txt" not in bundled(str(path), "--no-doctor")


def test_doctors_report_is_redacted_alike() -> None:
    """Use the recording's pseudonyms in doctor's report."""
    names = {"process": {"acme"}, "host": {"web-1"}, "interface": {"eth0", "acme0"}, "container": {"c1"}}
    redactor = Redactor(bytes(32))
    text = command._redacted(
        redactor, "acme on web-1 at 203.0.113.7 by eth0, acme0; /srv/acme/nettop; c1", names
    )
    rows = redactor.rows("connections", make_frame([{"id": 1, "process": "acme"}]).now.tables["sockets"])
    place = redactor.texts.place("203.0.113.7")
    assert text.startswith(f"{rows.texts['process'][0]} on {redactor.host('web-1')} at {place} by eth0, if-")
    assert "/path-" in text
    assert "/srv" not in text
    assert "c1" not in text.rpartition(" ")[2].partition("-")[0]


# --- the file -----------------------------------------------------------------------------------------------------


def state_of(path: str) -> tuple[int, ...]:
    """Return what writing to `path` changes; reading it changes only the time of access."""
    now = os.lstat(path)
    return now.st_ino, now.st_mode, now.st_size, now.st_mtime_ns, now.st_ctime_ns


@pytest.mark.parametrize("make", [lambda at: at.write_text("mine"), lambda at: at.symlink_to("nowhere")])
def test_what_is_there_stays(
    make: Callable[[Path], object], path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither replace a file nor follow a link."""
    make(Path("b.tar.gz"))
    before = state_of("b.tar.gz")
    assert run(["bundle", str(path), "-o", "b.tar.gz"], no_probes) == ExitCode.FAILURE
    assert "b.tar.gz already exists" in capfd.readouterr().err
    assert state_of("b.tar.gz") == before
    assert not Path("nowhere").exists()


def test_a_part_of_a_bundle_is_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove an incomplete bundle."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cutter, "copy_to", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(["bundle", str(path), "-o", "b.tar.gz"], no_probes)
    assert not Path("b.tar.gz").exists()


def test_standard_output(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Write the bundle to standard output with `-o -`."""
    assert run(["bundle", str(path), "-o", "-"], no_probes) == ExitCode.DONE
    shown = capfdbinary.readouterr()
    assert "recording.nettop" in members(shown.out)
    assert b"written to the output" in shown.err


def test_nothing_in_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refuse a span without readings, and name the recording's own span."""
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "r.nettop", [at_second(snapshots()[0], second) for second in (0, 600)])
    code, _, shown = said(capfd, "bundle", "r.nettop", "--at", "14:05", "--last", "9s", "-o", "b")
    assert code == ExitCode.USAGE
    assert "there are no readings from 2026-11-28 14:05:00 to 2026-11-28 14:05:09 UTC" in shown
    assert "the recording is from 2026-11-28 14:00:00 to 2026-11-28 14:10:00 UTC" in shown
    assert not Path("b").exists()
