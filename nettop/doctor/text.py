# SPDX-License-Identifier: Apache-2.0
"""The report as text: aligned lines, each with a sign, a verdict and, below it, the remedy."""

from __future__ import annotations

import locale
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from nettop.doctor.report import USER_CHOICES, Check, LensReport, Report, Verdict, stops_programs
from nettop.errors import ExitCode
from nettop.selftest.result import REPORT_IT, SelfTestResult
from nettop.snapshots.hooks import NOT_AVAILABLE, HookStatus
from nettop.snapshots.safe_text import safe_text

_SIGNS = {Verdict.OK: "✓", Verdict.NOTE: "▲", Verdict.BAD: "✗"}
_COLOURS = {Verdict.OK: "32", Verdict.NOTE: "33", Verdict.BAD: "31"}
_ASCII = str.maketrans(
    {"✓": "+", "▲": "!", "✗": "x", "→": ">", "–": "-", "−": "-", "…": "~", "µ": "u", "×": "x"}
)
_ARROW = "→ "
_INDENT = 9
"""The width before a name: two spaces, the sign, its word."""
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
"""The kernel option that a mechanism needs, by the first word of its name."""
_BUILT_IN = {
    "btf": "CONFIG_DEBUG_INFO_BTF",
    "kprobes": "CONFIG_KPROBE_EVENTS",
    "sock_diag": "CONFIG_INET_DIAG",
}
"""Facts of the host that, if ok, show that the kernel was built with an option."""


@dataclass(frozen=True, slots=True)
class _Line:
    verdict: Verdict
    name: str
    value: str
    below: tuple[str, ...] = ()
    word: str = ""


def write_report(report: Report, stream: TextIO) -> None:
    """Write the report in the form that the stream can show: width, colours, encoding."""
    is_terminal = stream.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    text = "\n".join(report_lines(report, width=width, coloured=coloured)) + "\n"
    is_utf8 = all(
        encoding.replace("-", "").lower() == "utf8" for encoding in (locale.getencoding(), stream.encoding)
    )
    stream.write(text if is_utf8 else text.translate(_ASCII).encode("ascii", "replace").decode())


def report_lines(report: Report, *, width: int | None = None, coloured: bool = False) -> Iterator[str]:
    """Yield the lines, folded to `width` columns if given."""
    for title, lines in _sections(report):
        yield title
        name_width = max((len(line.name) for line in lines), default=0)
        for line in lines:
            yield from _format_line(line, name_width, width, coloured)
        yield ""
    yield from _conclusion(report)


def _sections(report: Report) -> Iterator[tuple[str, list[_Line]]]:
    if report.checks:
        host = (
            _Line(check.verdict, check.name, check.value, _advice(check.remedy)) for check in report.checks
        )
        yield "HOST", list(host)
    for lens in report.lenses:
        if lines := list(_lens_lines(lens, report.checks)):
            yield lens.lens.id.upper(), lines
    if report.results:
        lens_width = max(len(result.lens) for result in report.results)
        yield "SELF-TEST", [_self_test_line(result, lens_width) for result in report.results]


def _lens_lines(lens: LensReport, checks: Sequence[Check]) -> Iterator[_Line]:
    if lens.error is not None:
        # The error's own remedy, or else the host's; none if it was the user's choice.
        is_choice = any(why in lens.error.what for why in USER_CHOICES)
        remedy = lens.error.remedy or ("" if is_choice else _host_remedy(checks))
        yield _Line(Verdict.BAD, "does not work", lens.error.what, _advice(remedy))
    for hook in lens.hooks:
        refused = tuple(f"refused {mechanisms}: {why}" for mechanisms, why in _refusals(hook))
        if hook.mechanism is None:
            advice = _advice(_remedy(lens, hook, checks))
            missing = f"not available{': ' if hook.fields else ''}{', '.join(hook.fields)}"
            yield _Line(Verdict.NOTE, hook.hook, missing, refused + advice, NOT_AVAILABLE)
        else:
            verdict = Verdict.NOTE if hook.refused else Verdict.OK
            yield _Line(verdict, hook.hook, hook.mechanism, refused)
    by_why: dict[str, list[str]] = {}
    for name, why in lens.gaps.items():
        by_why.setdefault(why, []).append(name)
    for why, names in by_why.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield _Line(Verdict.NOTE, names[0] + more, why)


def _advice(remedy: str) -> tuple[str, ...]:
    return (_ARROW + remedy,) if remedy else ()


def _refusals(hook: HookStatus) -> Iterator[tuple[str, str]]:
    """Yield the mechanisms refused for the same reason, as one text, and the reason. Count those that start alike."""
    for why in dict.fromkeys(why for _, why in hook.refused):
        alike: dict[str, list[str]] = {}
        for name in (name for name, reason in hook.refused if reason == why):
            alike.setdefault(name.partition(" + ")[0], []).append(name)
        yield (
            ", ".join(
                names[0] if len(names) == 1 else f"{begins} + … ({len(names)} mechanisms)"
                for begins, names in alike.items()
            ),
            why,
        )


def _remedy(lens: LensReport, hook: HookStatus, checks: Sequence[Check]) -> str:
    """Return a remedy that makes the hook available; empty if only the user's choice of mechanisms prevents it."""
    declared = lens.declared(hook.hook)
    required = next((other for other in lens.hooks if other.hook == declared.requires), None)
    if required is not None and required.refused:
        return _remedy(lens, required, checks)
    mechanisms = [name for name, why in hook.refused if why not in USER_CHOICES]
    if not mechanisms:
        return ""
    whys = {why for _, why in hook.refused}
    return (
        _to_fix(check for check in checks if check.value in whys)
        or declared.remedy
        or _host_remedy(checks)
        or hook.remedy
        or next((other.remedy for other in lens.hooks if whys & {why for _, why in other.refused}), "")
        or _kernel_with(mechanisms, checks)
    )


def _host_remedy(checks: Iterable[Check]) -> str:
    """Return a remedy that lets programs run."""
    return _to_fix(filter(stops_programs, checks))


def _to_fix(checks: Iterable[Check]) -> str:
    names = ", ".join(check.name for check in checks if check.verdict is Verdict.BAD)
    return f"fix these under HOST: {names}" if names else ""


def _kernel_with(mechanisms: Sequence[str], checks: Sequence[Check]) -> str:
    """Return a remedy with the kernel options that these mechanisms need and this kernel is known to lack."""
    kinds = (name.replace("/", " ").split()[0] for name in mechanisms)
    built_in = {_BUILT_IN.get(check.key) for check in checks if check.verdict is Verdict.OK}
    options = dict.fromkeys(_KERNEL_OPTIONS[kind] for kind in kinds if kind in _KERNEL_OPTIONS)
    missing = [option for option in options if option not in built_in]
    return f"use a kernel with {' or '.join(missing)}" if missing else REPORT_IT


def _self_test_line(result: SelfTestResult, lens_width: int) -> _Line:
    name = f"{result.lens:<{lens_width}}  {result.what}"
    if result.ok is None:
        return _Line(Verdict.NOTE, name, f"skipped: {result.skipped}")
    measured = "nothing" if result.measured is None else f"{result.measured:,}"
    value = f"{measured} of {result.expected:,} {result.unit}"
    if result.ok:
        return _Line(Verdict.OK, name, value)
    below = (*filter(None, (result.detail,)), _ARROW + result.remedy)
    return _Line(Verdict.BAD, name, value, below)


def _format_line(line: _Line, name_width: int, width: int | None, coloured: bool) -> Iterator[str]:
    sign = f"{_SIGNS[line.verdict]} {line.word or line.verdict:<4}"
    if coloured:
        sign = f"\x1b[{_COLOURS[line.verdict]}m{sign}\x1b[0m"
    at = _INDENT + name_width + 2
    value_width = None if width is None else max(width - at, _MIN_VALUE_WIDTH)
    values = list(_fold(line.value, value_width))
    yield f"  {sign} {safe_text(line.name):<{name_width}}  {values[0]}".rstrip()
    for value in (*values[1:], *(part for text in line.below for part in _fold(text, value_width))):
        yield " " * at + value


def _fold(text: str, value_width: int | None) -> list[str]:
    """Fold the text into lines of this width, all but the first indented."""
    text = safe_text(text)
    if value_width is None:
        return [text]
    return textwrap.wrap(
        text, value_width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    ) or [""]


# --- the conclusion -------------------------------------------------------------------------------------------


def _conclusion(report: Report) -> Iterator[str]:
    bad = [check.name for check in report.checks if check.verdict is Verdict.BAD]
    if bad:
        yield f"Bad under HOST: {', '.join(bad)}."
    for lens in report.lenses:
        if lens.error is not None:
            yield f"{lens.lens.id} does not work on this host."
    if report.disagreements:
        count = len(report.disagreements)
        lines = f"{count} line{'s' * (count > 1)}"
        yield f"The self-test disagrees in {lines}: what nettop shows on this host may be wrong."
    if report.exit_code is ExitCode.DONE and report.lenses:
        yield "Every lens works" + _exactness(report.results) + _missing(report.lenses) + "."


def _exactness(results: tuple[SelfTestResult, ...]) -> str:
    skipped = sum(result.ok is None for result in results)
    if skipped == len(results):
        return ""
    return ", and the self-test is exact" + (f" ({skipped} of {len(results)} skipped)" if skipped else "")


def _missing(lenses: tuple[LensReport, ...]) -> str:
    missing = {lens.lens.id: [hook.hook for hook in lens.hooks if hook.mechanism is None] for lens in lenses}
    texts = [f"{lens} {', '.join(hooks)}" for lens, hooks in missing.items() if hooks]
    return f"; {NOT_AVAILABLE}: {'; '.join(texts)}" if texts else ""
