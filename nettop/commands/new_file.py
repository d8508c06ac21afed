# SPDX-License-Identifier: Apache-2.0
"""New files that are named on the command line, for what only their owner may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nettop.commands.invoker import User, acting_as, open_files_as
from nettop.errors import NettopError
from nettop.writing import open_to_write, writing


@contextmanager
def new_file(path: Path, owner: User | None, remedy: str) -> Iterator[BinaryIO]:
    """Create a file that only its owner may read, and remove it if it is not completed.

    Raise NettopError with this remedy if the file exists or cannot be created.
    """
    with ExitStack() as resources:
        with open_files_as(owner), writing(str(path), remedy):
            try:
                file = resources.enter_context(open(path, "wb", opener=_create))
            except FileExistsError:
                raise NettopError(f"{path} already exists", f"{remedy}, or remove this one") from None
        try:
            yield file
        except BaseException:
            with suppress(OSError), acting_as(owner):
                path.unlink()
            raise


def _create(path: str, _flags: int) -> int:
    return open_to_write(path, os.O_CREAT | os.O_EXCL, 0o600)
