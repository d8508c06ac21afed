#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""List the licences of the Python packages in a Debian package, or remove files that another package has already.

vendored.py copyright FOLDER
vendored.py subtract OTHER_FOLDER FOLDER
"""

from __future__ import annotations

import filecmp
import re
import sys
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

_COMMON = "/usr/share/common-licenses"

_APACHE = re.compile(
    r"[ \t]*Apache License\s+Version 2\.0, January 2004.*?END OF TERMS AND CONDITIONS"
    r"(\s+APPENDIX:.*?limitations under the License\.)?",
    re.DOTALL,
)

_NETTOP = f"""\
nettop is licensed under the Apache License, Version 2.0, which is in
{_COMMON}/Apache-2.0. Its BPF programs (*.bpf.c, *.bpf.h)
may also be used under the GNU General Public License, version 2 only, which is
in {_COMMON}/GPL-2.

Copyright: the nettop developers

The package contains these Python packages, unchanged, as their authors publish
them, under their own licences.
"""


def copyright_text(folder: Path) -> str:
    """Return the package's copyright file. Raise ValueError if a Python package has no licence file."""
    return "\n".join([_NETTOP, *map(_paragraph, sorted(_others(folder)))])


def _others(folder: Path) -> Iterator[Path]:
    return (info for info in folder.glob("*.dist-info") if not info.name.startswith("nettop-"))


def _paragraph(info: Path) -> str:
    metadata = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"), headersonly=True)
    texts = [_shortened(file.read_text(encoding="utf-8")) for file in _licence_files(info)]
    if not texts:
        raise ValueError(f"{info.name} has no licence file")
    title = f"{metadata['Name']} {metadata['Version']}"
    return "\n\n".join(
        [f"{'-' * 79}\n\n{title}\nLicence: {_licence(metadata)}\n{_origin(metadata)}", *texts, ""]
    )


def _licence_files(info: Path) -> list[Path]:
    named = re.compile(r"(?i)(.*/)?(licen[cs]e|notice|copying|authors)[^/]*")
    return sorted(
        file for file in info.rglob("*") if file.is_file() and named.fullmatch(str(file.relative_to(info)))
    )


def _licence(metadata: Message) -> str:
    """Return the first line of the licence in the metadata; the licence files have the full text."""
    classified = [
        text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if "License" in text
    ]
    said = metadata["License-Expression"] or ", ".join(classified) or metadata["License"] or "see below"
    return said.splitlines()[0]


def _origin(metadata: Message) -> str:
    """Return the URL of the sources, or else the author."""
    pages = [url.rpartition(", ")[2] for url in metadata.get_all("Project-URL", [])]
    pages = [
        metadata["Home-page"],
        *(url for url in pages if re.match(r"https://git(hub|lab)\.com/[^/]+/[^/]+/?$", url)),
    ]
    return f"Origin: {next(filter(None, pages), metadata['Author-email'])}"


def _shortened(text: str) -> str:
    """Replace the text of the Apache licence by a reference to Debian's copy."""
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return _APACHE.sub(f"The Apache License, Version 2.0, which is in {_COMMON}/Apache-2.0", lines)


def subtract(other: Path, folder: Path) -> None:
    """Remove the files from a folder that the other folder also has. Raise ValueError if two contents differ."""
    for file in sorted(folder.rglob("*"), reverse=True):
        same = other / file.relative_to(folder)
        if file.is_dir():
            if not any(file.iterdir()):
                file.rmdir()
        elif same.exists():
            if not filecmp.cmp(file, same, shallow=False) and file.name not in ("REQUESTED", "RECORD"):
                raise ValueError(f"{file} differs from {same}")
            file.unlink()


if __name__ == "__main__":
    action, *folders = sys.argv[1:]
    if action == "copyright":
        sys.stdout.write(copyright_text(Path(folders[0])))
    else:
        subtract(*map(Path, folders))
