# SPDX-License-Identifier: Apache-2.0
"""The flows probe: fetches two documents from the collector per reading."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from nettop.collector.enrichment.networks import parsed_address
from nettop.collector.reader import (
    EXPORTERS_PATH,
    START_COLLECTOR,
    STATE_PATH,
    RemoteCollector,
    no_answer_message,
    running_collector,
)
from nettop.errors import ExitCode, SourceFailed, refusal
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, check_chosen
from nettop.kernel.host.facts import Host
from nettop.probes.probe import Probe
from nettop.settings import SYSTEM_FLOWS_DIR, collector_urls, default_flows_dir
from nettop.snapshots.arrays import Array, take_rows
from nettop.snapshots.collector import COLLECTOR, COUNTINGS, EXPORTERS, HOOK_COLLECTOR, LEDGER, LENS
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Rows, Snapshot, TextTable, clocks, unknown_value
from nettop.snapshots.source import SourceOptions

_FALLBACKS = Fallbacks(HOOK_COLLECTOR, (Mechanism("http"),))
_KEY = ("exporter", "port", "protocol_version", "domain")
_COLUMNS = {
    "port": "port",
    "protocol": "protocol_version",
    "domain": "domain",
    "flows": "rows",
    "first_seen": "first_ns",
    "last_seen": "last_ns",
} | {
    name: name
    for name in (
        *("datagrams", "bytes", "numbered", "restarts", "unchecked", "malformed", "broken", "options"),
        *("templates", "waiting", "forgotten"),
    )
}
"""The fields of an exporter, and the collector's name of each."""
_LEDGER_PARTS = ("datagrams", "sets_without_template", "flows")
"""The parts of the ledger, by the collector's names."""


def make_probe(host: Host | None = None) -> Flows:
    """Return the source of this lens."""
    return Flows(host)


class Flows(Probe):
    """The state of a flow collector, as it reports it; see nettop.snapshots.source.Source."""

    lens = LENS

    def __init__(self, host: Host | None = None) -> None:
        super().__init__(host)
        self._collector: RemoteCollector | None = None
        self._texts = TextTable()

    def start(self) -> None:
        """Check the options; the collector may be started later."""
        check_chosen([_FALLBACKS], self._options.mechanisms)

    def read(self, taken_ns: int) -> Snapshot:
        """Return the collector's current state; no rows if none runs."""
        documents: dict[str, Any] = {}
        hook = self._attach_best(_FALLBACKS, lambda _: documents.update(self._documents()))
        return Snapshot(
            LENS.id,
            *clocks(taken_ns),
            tables={
                EXPORTERS.name: Rows(EXPORTERS, _exporter_rows(documents.get(EXPORTERS_PATH)), {}, taken_ns),
                LEDGER.name: self._ledger(documents.get(STATE_PATH), taken_ns),
            },
            hooks=(hook,),
        )

    def configure(self, options: SourceOptions) -> None:
        """Replace the options, which may choose another collector."""
        super().configure(options)
        self._collector = None

    def describe(self, key: int) -> dict[str, str]:
        """Return the ID of a row."""
        return {"ID": str(key)}

    def _documents(self) -> dict[str, Any]:
        """Return the collector's documents by path. Raises a refusal if no collector answers."""
        if self._collector is None:
            self._collector = running_collector(self._urls())
        if self._collector is None:
            raise refusal(ExitCode.SOURCE, no_answer_message(self._urls()), START_COLLECTOR)
        try:
            return {path: self._collector.document(path) for path in (EXPORTERS_PATH, STATE_PATH)}
        except SourceFailed as error:
            self._collector = None
            raise refusal(error.exit_code, error.what, error.remedy) from error

    def _urls(self) -> tuple[str, ...]:
        if given := self._options[COLLECTOR]:
            return (given,)
        system, *_ = collector_urls(SYSTEM_FLOWS_DIR)
        return tuple(dict.fromkeys((system, *collector_urls(default_flows_dir()))))

    def _ledger(self, document: dict[str, Any] | None, taken_ns: int) -> Rows:
        terms = [
            (self._texts.code(part.replace("_", " ")), self._texts.code(term.replace("_", " ")), count)
            for part in _LEDGER_PARTS
            for term, count in ((document or {}).get(part) or {}).items()
        ]
        rows = np.zeros(len(terms), LEDGER.dtype)
        rows["id"] = np.arange(len(terms))
        if terms:
            rows["of"], rows["term"], rows["items"] = np.array(terms, np.uint64).T
        return Rows(LEDGER, rows, dict.fromkeys(("of", "term"), self._texts.frozen()), taken_ns)


def _exporter_rows(document: dict[str, Any] | None) -> Array:
    """Return the exporters as rows, sorted by ID, with unknown values marked."""
    exporters = [] if document is None else document["exporters"]
    rows = np.zeros(len(exporters), EXPORTERS.dtype)
    for field, name in _COLUMNS.items():
        rows[field] = [exporter[name] for exporter in exporters]
    rows["id"] = _ids(exporters)
    packed = b"".join(parsed_address(exporter["exporter"]).to_bytes(16) for exporter in exporters)
    rows["exporter"] = np.frombuffer(packed, ">u8").reshape(-1, 2)
    codes = {word: code for code, word in COUNTINGS.items()}
    rows["counting"] = [codes[exporter["counting"] or "unknown"] for exporter in exporters]
    unknown_lost, unknown_rate = (unknown_value(rows.dtype[name]) for name in ("lost", "sampling_rate"))
    rows["lost"] = [unknown_lost if exporter["lost"] is None else exporter["lost"] for exporter in exporters]
    rows["sampling_rate"] = [exporter["sampling_rate"] or unknown_rate for exporter in exporters]
    return take_rows(rows, np.argsort(rows["id"]))


def _ids(exporters: list[dict[str, Any]]) -> list[int]:
    """Return a stable ID for each exporter. One may be listed twice, if two receiving processes saw it."""
    seen = Counter[str]()
    ids = []
    for exporter in exporters:
        key = repr([exporter[name] for name in _KEY])
        ids.append(row_id(key, seen[key]))
        seen[key] += 1
    return ids
