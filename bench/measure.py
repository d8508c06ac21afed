# SPDX-License-Identifier: Apache-2.0
"""Helpers of the programs that look for faults: their command line, and figures with bounds."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class Figure:
    """One line of a report: a value with its upper (or lower) bound."""

    what: str
    value: float
    unit: str = ""
    bound: float | None = None
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the value meets its bound."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        """Return the figure with its bound and the word ok or missed."""
        text = f"  {self.what:<62} {self.value:>10.2f} {self.unit:<5}"
        if self.bound is None:
            return text.rstrip()
        return f"{text} {'≥' if self.at_least else '≤'} {self.bound:<6g} {'ok' if self.is_met else 'missed'}"


def at_least(what: str, value: float, unit: str, bound: float | None) -> Figure:
    """Return a figure with a lower bound."""
    return Figure(what, value, unit, bound, at_least=True)


Report = tuple[str, Iterable[Figure]]
"""A title and the figures below it."""


def arguments(doc: str, parts: Iterable[str] = (), **options: tuple[Any, str]) -> argparse.Namespace:
    """Parse a bench's command line: the names of its parts, and options, each with a default and a help text.

    An option whose default is False is a flag.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if names := tuple(parts):
        listed = f"{', '.join(names)} (default: all)"
        parser.add_argument("parts", nargs="*", choices=[[], *names], metavar="PART", help=listed)
    for name, (default, text) in options.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            said = f"{text} (default: {default})" if default else text
            parser.add_argument(f"--{name}", type=type(default), default=default, help=said)
    chosen = parser.parse_args()
    if names:
        chosen.parts = chosen.parts or list(names)
    return chosen


QUICK = False, "run small and briefly, to check that the bench works"


def judge(reports: Iterable[Report]) -> int:
    """Print reports as they come; return the exit status, 1 if a bound was missed."""
    missed = []
    for title, figures in reports:
        print(f"\n{title}")
        for figure in figures:
            print(figure.line(), flush=True)
            if not figure.is_met:
                missed.append(f"{title}: {' '.join(figure.line().split())}")
    for line in missed:
        print(f"\nMISSED  {line}")
    return int(bool(missed))
