# SPDX-License-Identifier: Apache-2.0
"""The user who called nettop through sudo: files that the command line names are opened as that user, and the command
of `nettop run` runs as that user.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nettop.errors import NettopError, PermissionMissing

_AS_ROOT = "run it as root itself: sudo env -u SUDO_UID nettop …"
_SHELL = "/bin/sh"
_NO_ID, _DIGITS, _SHOWN = 0xFFFFFFFF, 10, 20
SERVICE_USERS = ("nettop", "nobody")
"""Who root becomes to serve, and to collect flows where nobody else owns their directory: the first that exists."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class User:
    """A user as the kernel knows one."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def invoking_user() -> User | None:
    """Who called nettop through sudo; None where nobody did, or we are not root, or there is no such user."""
    uid, gid = _sudo_number("SUDO_UID"), _sudo_number("SUDO_GID")
    if os.geteuid() or not uid or gid is None:
        return None
    return _user(uid, gid)


def impossible_caller() -> str | None:
    """What is wrong with the user that sudo names; None if nothing is, or it names none."""
    variables = {name: os.environ[name] for name in ("SUDO_UID", "SUDO_GID") if os.environ.get(name)}
    if all(_sudo_number(name) is not None for name in variables):
        return None
    return f"there is no user {' '.join(f'{name}={text[:_SHOWN]}' for name, text in variables.items())}"


def _sudo_number(name: str) -> int | None:
    """A user or group in a variable of sudo's; None if invalid (the highest number means nobody, as in chown(2))."""
    text = os.environ.get(name, "")
    number = int(text) if text.isdecimal() and len(text) <= _DIGITS else _NO_ID
    return number if number < _NO_ID else None


def owner_of_files(path: Path) -> User | None:
    """The user who is to own what nettop writes below `path`, which the command line names; None for nettop's own user.

    Through sudo that is who called it, and nobody else: raises PermissionMissing where they may not write. Root itself
    becomes the owner of the directory: it can write nowhere else once it has dropped CAP_DAC_OVERRIDE. Raises
    NettopError for a path that another user may have prepared, and for an impossible name.
    """
    if os.geteuid():
        return None
    user = caller()
    if user is None:
        return owner_of_directory(path)
    with opening_as(user), _writing(path):
        _refuse_traps(path, {0, user.uid})
        place = path if path.exists() else _existing(Path(os.path.realpath(path)))
        if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0), effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return user


def owner_of_directory(path: Path, makers: Iterable[str] = ()) -> User | None:
    """Whom the path belongs to, or the nearest directory that exists; None for root. Raises NettopError for a path that
    another user may have prepared, and for an impossible name.

    `makers` are users that nettop makes directories for: one of theirs is nettop's own, also in /tmp.
    """
    with _writing(path):
        _refuse_traps(path, {0}, {user.uid for user in _named_users(makers)})
        owner = _existing(path).stat()
    return _user(owner.st_uid, owner.st_gid) if owner.st_uid else None


def closed_to(user: User, path: Path) -> Path | None:
    """Return the first directory above the path that this user may not enter; None where there is none."""
    ways = (
        Path(os.path.realpath(path)),
        path,
    )  # what a link leads to first: whoever may not, cannot follow it
    with opening_as(user):
        for place in (parent for way in ways for parent in reversed(_lineage(way)[1:])):
            if place.is_dir() and not os.access(place, os.X_OK, effective_ids=True):
                return place
    return None


def caller() -> User | None:
    """As `invoking_user`; but raises PermissionMissing where sudo names an impossible user."""
    if os.geteuid() == 0 and (why := impossible_caller()):
        raise PermissionMissing(f"{why}, so nettop opens no files for it", _AS_ROOT)
    return invoking_user()


def name_of(user: User) -> str:
    """What people call the user."""
    try:
        return pwd.getpwuid(user.uid).pw_name
    except KeyError:
        return f"uid {user.uid}"


def named_user(names: Iterable[str]) -> User:
    """The first of these users that exists. Raises NettopError if none does."""
    for user in _named_users(names):
        return user
    raise NettopError(
        f"there is no user {' or '.join(names)} to run as", "run nettop as another user than root"
    )


def _named_users(names: Iterable[str]) -> Iterator[User]:
    for name in names:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            yield _user(entry.pw_uid, entry.pw_gid)


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Look up, open and create files as this user; None changes nothing, and neither does who is root no more. Only
    while there is one thread.

    Raises OSError where nobody may act as another user, as in some containers.
    """
    if user is None or os.geteuid():
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


@contextmanager
def opening_as(user: User | None) -> Iterator[None]:
    """As `acting_as`, for files that the command line names. What who called sudo may not open is explained, and so is
    that nobody may act as another user.
    """
    with explaining_caller(invoking_user()), ExitStack() as acting:
        try:
            acting.enter_context(acting_as(user))
        except OSError as error:
            raise PermissionMissing(
                f"nettop may not open files as another user: {error.strerror}",
                "that takes CAP_SETUID and CAP_SETGID",
            ) from None
        yield


@contextmanager
def explaining_caller(user: User | None) -> Iterator[None]:
    """Where `user`, who called sudo, may not open a file have the error name who that is, and what to do."""
    try:
        yield
    except NettopError as error:
        if user is None or not isinstance(error.__cause__, PermissionError):
            raise
        name = name_of(user)
        raise PermissionMissing(
            f"{error.what} (nettop opens it as {name}, who called sudo)",
            f"give a path that is {name}'s, or {_AS_ROOT}",
        ) from error.__cause__


def may(user: User, mode: int, *places: Path) -> bool:
    """Whether we may act as this user, and the user may do with all these places what `mode` says (os.R_OK …)."""
    try:
        with acting_as(user):
            return all(os.access(place, mode, effective_ids=True) for place in places)
    except OSError:
        return False


def become(user: User) -> None:
    """Change to this user for good, with the variables that say so, or programs read root's files and fail."""
    os.environ.update(variables_of(user))
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def variables_of(user: User) -> dict[str, str]:
    """Return the environment variables that name the user, as sudo -u sets them."""
    try:
        entry = pwd.getpwuid(user.uid)
    except KeyError:  # nobody's account: as sudo -u '#UID'
        return {"HOME": "/", "SHELL": _SHELL, "USER": f"#{user.uid}", "LOGNAME": f"#{user.uid}"}
    return {
        "HOME": entry.pw_dir,
        "SHELL": entry.pw_shell or _SHELL,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "MAIL": f"/var/mail/{entry.pw_name}",
    }


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NettopError(f"{path} cannot be written: {error.strerror}", "give another name") from error


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(place for place in _lineage(path) if place.exists())


def _lineage(path: Path) -> Sequence[Path]:
    return (path.absolute(), *path.absolute().parents)


def _refuse_traps(path: Path, trusted: Container[int], makers: Container[int] = ()) -> None:
    """Raise NettopError for a path that another user may have prepared: with a symbolic link of theirs, or a file of
    theirs in a directory where everybody may create files (/tmp). A directory of one of the `makers` is none, unless
    others may write into it.
    """
    places = _lineage(path)
    for place, parent in zip(places, (*places[1:], places[-1]), strict=True):
        with suppress(FileNotFoundError, NotADirectoryError):
            status = place.lstat()
            is_shared = bool(parent.stat().st_mode & stat.S_ISVTX)
            is_made = status.st_uid in makers and stat.S_ISDIR(status.st_mode)
            if is_made and is_shared and status.st_mode & _WRITABLE_BY_OTHERS:
                raise NettopError(
                    f"other users may write into {place}",
                    f"chmod go-w {place} if all in it is yours, or use another directory",
                )
            if status.st_uid not in trusted and not is_made and (stat.S_ISLNK(status.st_mode) or is_shared):
                raise NettopError(
                    f"{place} was created by another user (uid {status.st_uid})",
                    "write to another directory",
                )


def _user(uid: int, gid: int) -> User:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return User(uid, gid, (gid,))
    return User(uid, gid, tuple(os.getgrouplist(name, gid)))
