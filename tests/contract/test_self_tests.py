# SPDX-License-Identifier: Apache-2.0
"""Each lens has a self-test, so that doctor notices numbers that are wrong on a new kernel."""

from __future__ import annotations

import importlib
import inspect

import pytest

from nettop.snapshots import lenses


@pytest.mark.parametrize("lens", [lens.id for lens in lenses()])
def test_each_lens_has_a_self_test(lens: str) -> None:
    """`self_test.run` in the package of its probe takes the source and the paths of the traffic."""
    run = importlib.import_module(f"nettop.probes.{lens}.self_test").run
    assert len(inspect.signature(run).parameters) == 2
