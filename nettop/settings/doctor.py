# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nettop.settings.declared import setting
from nettop.settings.shared import CommandSettings, mechanism_setting
from nettop.settings.values import one_of, parse_off, parse_seconds, some_of
from nettop.snapshots import lenses

STEP_S = 90.0
"""Longest time for each check and lens, unless another one is chosen."""
_FORMATS = ("text", "json")
_PARTS = ("host", *(lens.id for lens in lenses()))


# fmt: off
@dataclass(frozen=True, kw_only=True)
class DoctorSettings(CommandSettings):
    """Settings of `nettop doctor`. Without `parts`, it examines everything; `traffic` runs the self-test. `stays_root`
    is why nettop stays root, if it does. `step_s` is the longest time for each check and lens in seconds.
    """

    format: str = setting("text", "--format", metavar="|".join(_FORMATS), parse=one_of("format", _FORMATS),
                          complete=_FORMATS, help="Report format: text for people, json for programs (text)")
    bundle: Path | None = setting(None, "--bundle", metavar="FILE", parse=lambda _, text: Path(text),
                                  help="Also write a .tar.gz archive for a bug report, with addresses and names "
                                  "replaced")
    traffic: bool = setting(True, "--no-traffic", kind=bool, parse=parse_off, help="Skip the self-test")
    parts: tuple[str, ...] = setting((), "--only", metavar="PART", kind=list[str], parse=some_of("part", _PARTS),
                                     complete=_PARTS, help=f"Check only this part: {', '.join(_PARTS)}; repeatable")
    step_s: float = setting(STEP_S, "--timeout", metavar="SECONDS", parse=partial(parse_seconds, least=1),
                            help=f"Longest time for each check and lens ({STEP_S:g})")
    mechanisms: Mapping[str, str] = mechanism_setting()
    stays_root: str = field(default="")
    # fmt: on
