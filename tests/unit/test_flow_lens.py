# SPDX-License-Identifier: Apache-2.0
"""The collector lens: rows from documents as produced by a collector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nettop import cli
from nettop.collector.decode.sequences import Counting
from nettop.collector.exporters import EXPORTER
from nettop.collector.reader import (
    EXPORTERS_PATH,
    STATE_PATH,
    RemoteCollector,
    no_answer_message,
    running_collector,
)
from nettop.errors import ExitCode, NettopError, PermissionMissing, SourceFailed
from nettop.probes.collector import probe
from nettop.probes.collector.probe import Flows as Probe
from nettop.query.address import address_text
from nettop.serve.flows.state import exporter_documents, state_document
from nettop.settings import SYSTEM_FLOWS_DIR, collector_urls
from nettop.snapshots.arrays import Array
from nettop.snapshots.collector import COUNTINGS, EXPORTERS, LEDGER, LENS
from nettop.snapshots.snapshot import known
from tests.options import source_options

from .test_flow_http import collector_state

TAKEN_NS = 5_000_000_000
ADDRESSES = {
    "192.0.2.1": bytes(10) + b"\xff\xff\xc0\0\2\1",
    "2001:db8::1": bytes.fromhex("20010db8" + "0" * 23 + "1"),
}


def exporters(*values: dict[str, Any]) -> Array:
    """Return exporters as in the collector's table."""
    made = np.zeros(len(values), EXPORTER)
    for row, given in zip(made, values, strict=True):
        for name, value in given.items():
            row[name] = np.void(ADDRESSES[value]) if name == "exporter" else value
    return made


class Answers:
    """A collector with these exporters, which may go away."""

    def __init__(self, known: Array) -> None:
        self.known = known
        self.is_away = False

    def document(self, path: str) -> Any:
        """Return a document, as in nettop.collector.reader.RemoteCollector."""
        if self.is_away:
            raise SourceFailed("the collector does not answer", "")
        if path == EXPORTERS_PATH:
            return {"exporters": exporter_documents(self.known)}
        assert path == STATE_PATH
        return state_document(collector_state())


@pytest.fixture
def looked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return the addresses probed for collectors; without `answering` none answers."""
    return answering(None, monkeypatch)


def answering(collector: Answers | None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Let this collector answer, and return the addresses that were probed."""
    urls: list[tuple[str, ...]] = []

    def running(places: Sequence[str]) -> Answers | None:
        urls.append(tuple(places))
        return None if collector is None or collector.is_away else collector

    monkeypatch.setattr(probe, "running_collector", running)
    return urls


def test_exporters_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown losses and sampling rates are missing values; late arrivals never make losses negative."""
    given = exporters(
        {
            "exporter": "192.0.2.1",
            "port": 9,
            "protocol_version": 9,
            "domain": 3,
            "rows": 70,
            "sampling_rate": 100,
            "lost": 7,
            "numbered": 70,
            "counting": Counting.FLOWS,
        },
        {
            "exporter": "2001:db8::1",
            "protocol_version": 105,
            "rows": 5,
            "lost": -2,
            "counting": Counting.DATAGRAMS,
        },
        {
            "exporter": "2001:db8::1",
            "protocol_version": 105,
            "domain": 2,
            "rows": 6,
            "lost": 9,
            "unchecked": 40,
        },
        {"exporter": "192.0.2.1", "malformed": 4},
    )
    answering(Answers(given), monkeypatch)
    source = Probe()
    source.start()
    snapshot = source.read(TAKEN_NS)
    assert snapshot.hooks[0].mechanism == "http"
    rows = np.sort(snapshot.tables[EXPORTERS.name].array, order=("protocol", "domain"))
    assert rows["protocol"].tolist() == [0, 9, 105, 105]
    addresses = [address_text(address.tobytes()) for address in rows["exporter"]]
    assert addresses == ["192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::1"]
    assert (rows["port"].tolist(), rows["domain"].tolist()) == ([0, 9, 0, 0], [0, 3, 0, 2])
    assert (rows["flows"].tolist(), rows["numbered"].tolist()) == ([0, 70, 5, 6], [0, 70, 0, 0])
    assert known(rows["lost"]).tolist() == [False, True, True, False]
    assert rows["lost"][1:3].tolist() == [7, 0]
    assert [COUNTINGS[code] for code in rows["counting"]] == ["unknown", "flows", "datagrams", "unknown"]
    assert known(rows["sampling_rate"]).tolist() == [False, True, False, False]


def test_countings_have_the_same_names() -> None:
    """In the lens and in the collector."""
    assert {counting.name.lower(): counting for counting in Counting} == {
        word: code for code, word in COUNTINGS.items()
    }


def test_ids_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter keeps its row in the next reading, also if two processes receive from it."""
    twice = {"exporter": "192.0.2.1", "protocol_version": 5}
    collector = Answers(exporters(twice, {"exporter": "2001:db8::1"}, twice))
    answering(collector, monkeypatch)
    source = Probe()
    first = source.read(TAKEN_NS).tables[EXPORTERS.name].array
    collector.known = collector.known[[0, 2, 1]]
    second = source.read(2 * TAKEN_NS).tables[EXPORTERS.name].array
    assert len(set(first["id"])) == 3
    assert first["id"].tolist() == second["id"].tolist()


def test_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part starts with the sum of its other terms."""
    answering(Answers(exporters()), monkeypatch)
    rows = Probe().read(TAKEN_NS).tables[LEDGER.name]
    words = rows.texts["of"], rows.texts["term"]
    terms = [(words[0][row["of"]], words[1][row["term"]], int(row["items"])) for row in rows.array]
    assert ("flows", "dropped by spool", 1) in terms
    for part in ("datagrams", "flows", "sets without template"):
        first, *others = (count for of, _, count in terms if of == part)
        assert first == sum(others)


def test_no_collector(looked_for: list[tuple[str, ...]]) -> None:
    """The lens has no rows, says where it looked, and keeps looking."""
    source = Probe()
    for _ in range(2):
        snapshot = source.read(TAKEN_NS)
        assert [len(rows.array) for rows in snapshot.tables.values()] == [0, 0]
        assert snapshot.hooks[0].mechanism is None
        assert "no collector answers at unix:" in snapshot.hooks[0].why
        refusal = snapshot.refusal(LENS.tables)
        assert refusal is not None
        assert (refusal.exit_code, "nettop collect" in refusal.remedy) == (ExitCode.SOURCE, True)
    assert len(looked_for) == 2
    assert looked_for[0][0] == collector_urls(SYSTEM_FLOWS_DIR)[0]


@pytest.mark.parametrize(
    "words",
    [
        ("--table",),
        ("--table", "--once"),
        ("--once", "-d", "--table"),
        ("--format", "csv", "--once"),
        ("--format", "jsonl"),
        ("--format", "jsonl", "--why"),
        ("--table", "--filter", "nowhere"),
        ("--table", "--deltas"),
        ("--table", "--all"),
    ],
)
@pytest.mark.parametrize("view", ["flows", "collector.ledger"])
def test_plain_output_without_a_collector(
    looked_for: list[tuple[str, ...]],
    words: tuple[str, ...],
    view: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says so once, on standard error only, and exits with the code for a missing source."""
    monkeypatch.setattr(probe, "no_answer_message", lambda _: "no collector answers at unix:here")
    code = cli.run(["--view", view, *words], lambda _: Probe())
    shown = capsys.readouterr()
    assert (code, shown.out) == (ExitCode.SOURCE, "")
    assert shown.err.count("no collector answers at unix:here") == 1
    assert "start one with nettop collect" in shown.err
    assert len(looked_for) >= 1


def test_why_none_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that denies permission, or requires a token, is distinguished from none at all."""
    answers: dict[str, NettopError | int] = {
        "unix:/closed": PermissionMissing("permission denied"),
        "http://[::1]:1": SourceFailed("it does not answer"),
        "http://[::1]:2": 401,
    }

    def answered(collector: RemoteCollector, *_: object) -> tuple[int, bytes]:
        answer = answers[collector.url]
        if isinstance(answer, NettopError):
            raise answer
        return answer, b""

    monkeypatch.setattr(RemoteCollector, "_answer", answered)
    assert running_collector(list(answers)) is None
    assert no_answer_message(list(answers)) == (
        "no collector answers at unix:/closed (permission denied) or http://[::1]:1 or http://[::1]:2 (status 401)"
    )


def test_another_collector(looked_for: list[tuple[str, ...]]) -> None:
    """--collector names the only one to try."""
    source = Probe()
    source.configure(source_options(collector="http://192.0.2.9:9472"))
    source.read(TAKEN_NS)
    assert looked_for == [("http://192.0.2.9:9472",)]


def test_a_collector_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next reading has no rows; they return with the collector."""
    collector = Answers(exporters({"exporter": "192.0.2.1"}))
    answering(collector, monkeypatch)
    source = Probe()
    counts = []
    for is_away in (False, True, True, False):
        collector.is_away = is_away
        counts.append(len(source.read(TAKEN_NS).tables[EXPORTERS.name].array))
    assert counts == [1, 0, 0, 1]
