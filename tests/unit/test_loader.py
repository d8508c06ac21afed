# SPDX-License-Identifier: Apache-2.0
"""Which bcc the loader takes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from nettop.errors import Unsupported
from nettop.kernel import loader


def called(version: str | None) -> SimpleNamespace:
    """A module that looks like bcc."""
    return SimpleNamespace(BPF=object, **({} if version is None else {"__version__": version}))


@pytest.mark.parametrize(
    "version", ["0.26.0", "0.31.0", "0.29.1+g1a2b3c4", "1.0.0", "EAD-HASH-NOTFOUND", None]
)
def test_bcc_that_will_do(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A version that is new enough is taken, and so is a build without a number."""
    bcc = called(version)
    monkeypatch.setitem(sys.modules, "bcc", bcc)
    assert loader.import_bcc() is bcc


@pytest.mark.parametrize("version", ["0.18.0", "0.25.0+ds", "0.9.0"])
def test_bcc_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """One that is too old is named, with the version that is needed and what to do."""
    monkeypatch.setitem(sys.modules, "bcc", called(version))
    error = loader.import_bcc()
    assert isinstance(error, Unsupported)
    assert error.what == f"bcc {version} is too old: nettop needs 0.26 or later"
    assert "install-deps.sh" in error.remedy
