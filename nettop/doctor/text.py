# SPDX-License-Identifier: Apache-2.0
"""The report for people: a sign and a word for each line, aligned, and what to do below it."""

from __future__ import annotations

import locale
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from nettop.doctor.report import USER_CHOICES, Check, LensReport, Report, Verdict
from nettop.errors import ExitCode, NettopError
from nettop.selftest.result import REPORT_IT, SelfTestResult
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import NOT_AVAILABLE, HookStatus

_SIGNS = {Verdict.OK: "✓", Verdict.NOTE: "▲", Verdict.BAD: "✗"}
_COLOURS = {Verdict.OK: "32", Verdict.NOTE: "33", Verdict.BAD: "31"}
_ASCII = str.maketrans(
    {"✓": "+", "▲": "!", "✗": "x", "→": ">", "–": "-", "−": "-", "…": "~", "µ": "u", "×": "x"}
)
_ARROW = "→ "
_INDENT = 9
"""In front of a name: two blanks, the sign, its word."""
_MIN_VALUE_WIDTH = 30
_KERNEL_OPTIONS = {
    "fentry": "CONFIG_FUNCTION_TRACER",
    "fexit": "CONFIG_FUNCTION_TRACER",
    "kprobe": "CONFIG_KPROBE_EVENTS",
    "kretprobe": "CONFIG_KPROBE_EVENTS",
    "iter": "CONFIG_DEBUG_INFO_BTF",
    "tp_btf": "CONFIG_DEBUG_INFO_BTF",
    "sock_diag": "CONFIG_INET_DIAG",
}
"""What a kernel is built with that has such a way."""
_BUILT_IN = {
    "btf": "CONFIG_DEBUG_INFO_BTF",
    "kprobes": "CONFIG_KPROBE_EVENTS",
    "sock_diag": "CONFIG_INET_DIAG",
}
"""Facts of the host that, where they are well, say that a kernel was built so."""


@dataclass(frozen=True, slots=True)
class _Line:
    verdict: Verdict
    word: str
    name: str
    value: str
    below: tuple[str, ...] = ()


def write_report(report: Report, stream: TextIO) -> None:
    """Write it as this terminal, or whatever else the stream is, can show it."""
    is_terminal = stream.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    text = "\n".join(report_lines(report, width=width, coloured=coloured)) + "\n"
    is_utf8 = all(
        encoding.replace("-", "").lower() == "utf8" for encoding in (locale.getencoding(), stream.encoding)
    )
    stream.write(text if is_utf8 else text.translate(_ASCII).encode("ascii", "replace").decode())


def report_lines(report: Report, *, width: int | None = None, coloured: bool = False) -> Iterator[str]:
    """The lines, no wider than `width` columns if one is given."""
    for title, lines in _sections(report):
        yield title
        name_width = max((len(line.name) for line in lines), default=0)
        for line in lines:
            yield from _written(line, name_width, width, coloured)
        yield ""
    yield from _conclusion(report)


def _sections(report: Report) -> Iterator[tuple[str, list[_Line]]]:
    if report.checks:
        yield (
            "HOST",
            [
                _Line(
                    one.verdict,
                    one.verdict,
                    one.name,
                    one.value,
                    (_ARROW + one.remedy,) if one.remedy else (),
                )
                for one in report.checks
            ],
        )
    for lens in report.lenses:
        yield lens.lens.id.upper(), list(_lens_lines(lens, report.checks))
    if report.results:
        lens_width = max(len(one.lens) for one in report.results)
        yield "SELF-TEST", [_trial_line(one, lens_width) for one in report.results]


def _lens_lines(lens: LensReport, checks: Sequence[Check]) -> Iterator[_Line]:
    if lens.error is not None:
        yield _Line(
            Verdict.BAD, Verdict.BAD, "does not work", lens.error.what, _below(_remedy_of(lens.error, checks))
        )
    for hook in lens.hooks:
        refused = tuple(f"not {mechanisms}: {why}" for mechanisms, why in _refusals(hook))
        if hook.mechanism is None:
            remedy = _below(_remedy(lens, hook, checks))
            missing = f"no way here{': ' if hook.fields else ''}{', '.join(hook.fields)}"
            yield _Line(Verdict.NOTE, NOT_AVAILABLE, hook.hook, missing, refused + remedy)
        else:
            verdict = Verdict.NOTE if hook.refused else Verdict.OK
            yield _Line(verdict, verdict, hook.hook, hook.mechanism, refused)
    by_why: dict[str, list[str]] = {}
    for name, why in lens.gaps.items():
        by_why.setdefault(why, []).append(name)
    for why, names in by_why.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield _Line(Verdict.NOTE, Verdict.NOTE, names[0] + more, why)


def _below(remedy: str) -> tuple[str, ...]:
    return (_ARROW + remedy,) if remedy else ()


def _refusals(hook: HookStatus) -> Iterator[tuple[str, str]]:
    """The ways that were refused for the same reason, as one text, and the reason. Those that begin alike are
    counted.
    """
    for why in dict.fromkeys(why for _, why in hook.refused):
        alike: dict[str, list[str]] = {}
        for way in (way for way, reason in hook.refused if reason == why):
            alike.setdefault(way.partition(" + ")[0], []).append(way)
        yield (
            ", ".join(
                mechanisms[0] if len(mechanisms) == 1 else f"{begins} + … ({len(mechanisms)} mechanisms)"
                for begins, mechanisms in alike.items()
            ),
            why,
        )


def _remedy_of(error: NettopError, checks: Sequence[Check]) -> str:
    """What would have the lens work: the error's own remedy, or else the host's; empty where the user left it out."""
    if error.remedy or any(why in error.what for why in USER_CHOICES):
        return error.remedy
    return _mend(checks)


def _remedy(lens: LensReport, hook: HookStatus, checks: Sequence[Check]) -> str:
    """What would make the hook available; empty where only the user's choice of mechanisms stands against it."""
    declared = lens.declared(hook.hook)
    required = next((other for other in lens.hooks if other.hook == declared.requires), None)
    if required is not None and required.refused:
        return _remedy(lens, required, checks)
    mechanisms = [way for way, why in hook.refused if why not in USER_CHOICES]
    if not mechanisms:
        return ""
    return declared.remedy or _mend(checks) or _kernel_with(mechanisms, checks)


def _mend(checks: Sequence[Check]) -> str:
    bad = ", ".join(one.name for one in checks if one.verdict is Verdict.BAD)
    return f"mend what is bad under HOST: {bad}" if bad else ""


def _kernel_with(mechanisms: Sequence[str], checks: Sequence[Check]) -> str:
    """What a kernel is built with that has one of these ways, and this one is not, as far as is known."""
    kinds = (way.replace("/", " ").split()[0] for way in mechanisms)
    built_in = {_BUILT_IN.get(one.key) for one in checks if one.verdict is Verdict.OK}
    options = dict.fromkeys(_KERNEL_OPTIONS[kind] for kind in kinds if kind in _KERNEL_OPTIONS)
    missing = [option for option in options if option not in built_in]
    return f"a kernel with {' or '.join(missing)} has it" if missing else REPORT_IT


def _trial_line(trial: SelfTestResult, lens_width: int) -> _Line:
    name = f"{trial.lens:<{lens_width}}  {trial.what}"
    if trial.ok is None:
        return _Line(Verdict.NOTE, Verdict.NOTE, name, f"not tried: {trial.why_not}")
    measured = "nothing" if trial.measured is None else f"{trial.measured:,}"
    value = f"{measured} of {trial.expected:,} {trial.unit}"
    if trial.ok:
        return _Line(Verdict.OK, Verdict.OK, name, value)
    below = (*filter(None, (trial.detail,)), _ARROW + trial.remedy)
    return _Line(Verdict.BAD, Verdict.BAD, name, value, below)


def _written(line: _Line, name_width: int, width: int | None, coloured: bool) -> Iterator[str]:
    sign = f"{_SIGNS[line.verdict]} {line.word:<4}"
    if coloured:
        sign = f"\x1b[{_COLOURS[line.verdict]}m{sign}\x1b[0m"
    at = _INDENT + name_width + 2
    room = None if width is None else max(width - at, _MIN_VALUE_WIDTH)
    values = list(_folded(line.value, room))
    yield f"  {sign} {safe_text(line.name):<{name_width}}  {values[0]}".rstrip()
    for value in (*values[1:], *(part for text in line.below for part in _folded(text, room))):
        yield " " * at + value


def _folded(text: str, room: int | None) -> list[str]:
    """The text in lines of that width; what belongs to one remark hangs below it."""
    text = safe_text(text)
    if room is None:
        return [text]
    return textwrap.wrap(
        text, room, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    ) or [""]


# --- the last words -------------------------------------------------------------------------------------------


def _conclusion(report: Report) -> Iterator[str]:
    bad = [one.name for one in report.checks if one.verdict is Verdict.BAD]
    if bad:
        yield f"Bad under HOST: {', '.join(bad)}."
    failed = [one for one in report.lenses if one.error is not None]
    for one in failed:
        yield f"{one.lens.id} does not work here."
    if report.wrong_trials:
        count = len(report.wrong_trials)
        yield f"The self-test disagrees in {count} line{'s' * (count > 1)}: what nettop shows here may be wrong."
    if report.exit_code is ExitCode.DONE and report.lenses:
        yield "Every lens works here" + _exactness(report.results) + _missing(report.lenses) + "."


def _exactness(results: tuple[SelfTestResult, ...]) -> str:
    tried = [one for one in results if one.ok is not None]
    if not tried:
        return ""
    untried = len(results) - len(tried)
    return ", and the self-test is exact" + (f" ({untried} of {len(results)} not tried)" if untried else "")


def _missing(lenses: tuple[LensReport, ...]) -> str:
    missing: Mapping[str, list[str]] = {
        one.lens.id: [hook.hook for hook in one.hooks if hook.mechanism is None] for one in lenses
    }
    texts = [f"{lens} {', '.join(points)}" for lens, points in missing.items() if points]
    return f"; {NOT_AVAILABLE}: {'; '.join(texts)}" if texts else ""
