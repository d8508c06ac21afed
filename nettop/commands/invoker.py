# SPDX-License-Identifier: Apache-2.0
"""Who called nettop, and what is done as them: files belong to them, and so does the command of `nettop run`."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nettop.errors import NettopError

_NO_ID, _DIGITS, _SHOWN = 0xFFFFFFFF, 10, 20


@dataclass(frozen=True, slots=True)
class User:
    """A user as the kernel knows one."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def invoking_user() -> User | None:
    """Who called nettop through sudo; None where nobody did, or we are not root, or there is no such user."""
    uid, gid = _told_by_sudo("SUDO_UID"), _told_by_sudo("SUDO_GID")
    if os.geteuid() or not uid or gid is None:
        return None
    return _user(uid, gid)


def impossible_caller() -> str | None:
    """What sudo says of who called nettop where that is nobody; None where it is somebody, or it says nothing."""
    said = {name: os.environ[name] for name in ("SUDO_UID", "SUDO_GID") if os.environ.get(name)}
    if all(_told_by_sudo(name) is not None for name in said):
        return None
    return f"there is no user {' '.join(f'{name}={text[:_SHOWN]}' for name, text in said.items())}"


def _told_by_sudo(name: str) -> int | None:
    """The number of a user or a group; None for what is none (the last one means nobody, as in chown(2))."""
    text = os.environ.get(name, "")
    number = int(text) if text.isdecimal() and len(text) <= _DIGITS else _NO_ID
    return number if number < _NO_ID else None


def owner_of_files(path: Path) -> User | None:
    """Who shall own what nettop writes below `path`; None for nettop's own user.

    It is who called nettop, if they may write there, and otherwise who owns the place: root without its right
    to write everywhere, which is given up, can write nowhere else. Raises NettopError for a trap, and for a name that
    no file can have.
    """
    if os.geteuid():
        return None
    user = invoking_user()
    places = (path.absolute(), *path.absolute().parents)
    try:
        _refuse_traps(places, {0} if user is None else {0, user.uid})
        there = next(place for place in places if place.exists())
    except OSError as error:
        raise NettopError(f"{path} cannot be written: {error.strerror}", "give another name") from error
    if user is not None and may(user, os.W_OK | os.X_OK, there):
        return user
    found = there.stat()
    return _user(found.st_uid, found.st_gid) if found.st_uid else None


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Files are found, opened and made as this user; None changes nothing. While there is one thread only.

    Raises OSError where nobody may act as another user, as in some containers.
    """
    if user is None:
        yield
        return
    groups = os.getgroups()
    try:
        os.setgroups(user.groups)
        os.setegid(user.gid)
        os.seteuid(user.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def may(user: User, mode: int, *places: Path) -> bool:
    """Whether we may act as this user, and the user may do with all these places what `mode` says (os.R_OK …)."""
    try:
        with acting_as(user):
            return all(os.access(place, mode, effective_ids=True) for place in places)
    except OSError:
        return False


def become(user: User) -> None:
    """Be this user from now on, for good."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _refuse_traps(places: Sequence[Path], trusted: Container[int]) -> None:
    """Raise NettopError where somebody else may have prepared what is written to: a symbolic link on the way, or
    something of theirs in a directory where everybody may make something (/tmp).
    """
    for place, parent in zip(places, (*places[1:], places[-1]), strict=True):
        with suppress(FileNotFoundError, NotADirectoryError):
            found = place.lstat()
            is_shared = bool(parent.stat().st_mode & stat.S_ISVTX)
            if found.st_uid not in trusted and (stat.S_ISLNK(found.st_mode) or is_shared):
                raise NettopError(
                    f"{place} was created by another user (uid {found.st_uid})",
                    "write to another directory",
                )


def _user(uid: int, gid: int) -> User:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return User(uid, gid, (gid,))
    return User(uid, gid, tuple(os.getgrouplist(name, gid)))
