# SPDX-License-Identifier: Apache-2.0
"""The user who called nettop through sudo. nettop opens files named on the command line as that user, and `nettop run`
runs its command as that user.
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
from typing import BinaryIO

from nettop.errors import NettopError, PermissionMissing
from nettop.writing import open_to_write, writing

_AS_ROOT = "run nettop as root itself: sudo env -u SUDO_UID nettop …"
_SHELL = "/bin/sh"
_NO_ID, _DIGITS, _SHOWN = 0xFFFFFFFF, 10, 20
SERVICE_USERS = ("nettop", "nobody")
"""Users that root may become to serve, and to collect flows if root owns the directory: the first that exists."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class User:
    """A user's IDs."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def invoking_user() -> User | None:
    """Return the user who called nettop through sudo; None without sudo, if not root, or if the user is invalid."""
    uid, gid = _sudo_number("SUDO_UID"), _sudo_number("SUDO_GID")
    if os.geteuid() or not uid or gid is None:
        return None
    return _user(uid, gid)


def invalid_caller() -> str | None:
    """Return why the user named by sudo is invalid; None if it is valid, or without sudo."""
    variables = {name: os.environ[name] for name in ("SUDO_UID", "SUDO_GID") if os.environ.get(name)}
    if all(_sudo_number(name) is not None for name in variables):
        return None
    return f"there is no user {' '.join(f'{name}={text[:_SHOWN]}' for name, text in variables.items())}"


def _sudo_number(name: str) -> int | None:
    """Parse the ID in one of sudo's variables; None if invalid. The highest number is no ID, as in chown(2)."""
    text = os.environ.get(name, "")
    number = int(text) if text.isdecimal() and len(text) <= _DIGITS else _NO_ID
    return number if number < _NO_ID else None


def file_owner(path: Path) -> User | None:
    """Return the user who should own files under `path`, a path from the command line; None for the current user.

    Under sudo that is always the caller; raise PermissionMissing if the caller may not write there. Root itself
    becomes the owner of the directory, as it cannot write elsewhere once it has dropped CAP_DAC_OVERRIDE. Raise
    NettopError for a path that another user may have tampered with, and for an invalid name.
    """
    if os.geteuid():
        return None
    user = caller()
    if user is None:
        return owner_of_directory(path)
    with open_files_as(user), _writing(path):
        _refuse_untrusted(path, {0, user.uid})
        place = path if path.exists() else _existing(Path(os.path.realpath(path)))
        if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0), effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return user


def owner_of_directory(path: Path, makers: Iterable[str] = ()) -> User | None:
    """Return the owner of the path, or of its nearest existing parent; None for root. Raise NettopError for a path
    that another user may have tampered with, and for an invalid name.

    `makers` are users that nettop creates directories for: their directories are trusted, even in /tmp.
    """
    with _writing(path):
        _refuse_untrusted(path, {0}, {user.uid for user in _named_users(makers)})
        owner = _existing(path).stat()
    return _user(owner.st_uid, owner.st_gid) if owner.st_uid else None


def first_closed_directory(user: User, path: Path) -> Path | None:
    """Return the topmost parent directory of the path that this user may not enter; None if there is none."""
    # Check the target of links first: without access to it the user cannot follow them.
    paths = (Path(os.path.realpath(path)), path)
    with open_files_as(user):
        for place in (parent for used in paths for parent in reversed(_with_parents(used)[1:])):
            if place.is_dir() and not os.access(place, os.X_OK, effective_ids=True):
                return place
    return None


def caller() -> User | None:
    """Return `invoking_user()`, but raise PermissionMissing if sudo names an invalid user."""
    if os.geteuid() == 0 and (why := invalid_caller()):
        raise PermissionMissing(f"{why}: nettop cannot open files as that user", _AS_ROOT)
    return invoking_user()


def name_of(user: User) -> str:
    """Return the user's name, or `uid N` without an account."""
    try:
        return pwd.getpwuid(user.uid).pw_name
    except KeyError:
        return f"uid {user.uid}"


def named_user(names: Iterable[str]) -> User:
    """Return the first of these users that exists. Raise NettopError if none does."""
    for user in _named_users(names):
        return user
    raise NettopError(
        f"there is no user {' or '.join(names)} to run as", "run nettop as a user other than root"
    )


def _named_users(names: Iterable[str]) -> Iterator[User]:
    for name in names:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            yield _user(entry.pw_uid, entry.pw_gid)


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Look up, open and create files as this user. A no-op for None, and if not root. Use it only while there is one
    thread.

    Raise OSError where root may not act as another user, as in some containers.
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
def open_files_as(user: User | None) -> Iterator[None]:
    """Act as this user to open files that the command line names (see `acting_as`). Errors explain which user may not
    open the file, or that nettop may not act as another user.
    """
    with explain_caller(invoking_user()), ExitStack() as acting:
        try:
            acting.enter_context(acting_as(user))
        except OSError as error:
            raise PermissionMissing(
                f"nettop cannot open files as another user: {error.strerror}", "add CAP_SETUID and CAP_SETGID"
            ) from None
        yield


@contextmanager
def explain_caller(user: User | None) -> Iterator[None]:
    """Explain permission errors: name the caller of sudo, `user`, who may not open the file, and a remedy."""
    try:
        yield
    except NettopError as error:
        if user is None or not isinstance(error.__cause__, PermissionError):
            raise
        name = name_of(user)
        raise PermissionMissing(
            f"{error.what} (nettop opens it as {name}, who called sudo)",
            f"choose a path that {name} may access, or {_AS_ROOT}",
        ) from error.__cause__


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


def has_access(user: User, mode: int, *places: Path) -> bool:
    """Return whether nettop may act as this user, and the user has access `mode` (os.R_OK …) to all these paths."""
    try:
        with acting_as(user):
            return all(os.access(place, mode, effective_ids=True) for place in places)
    except OSError:
        return False


def become(user: User) -> None:
    """Change to this user permanently. Also set HOME and the like, or programs would fail on root's files."""
    os.environ.update(variables_of(user))
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def variables_of(user: User) -> dict[str, str]:
    """Return the environment variables that name the user, as sudo -u sets them."""
    try:
        entry = pwd.getpwuid(user.uid)
    except KeyError:  # no account: as sudo -u '#UID' does
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
        raise NettopError(f"{path} cannot be written: {error.strerror}", "choose another path") from error


def _existing(path: Path) -> Path:
    """Return the path if it exists, else its nearest existing parent."""
    return next(place for place in _with_parents(path) if place.exists())


def _with_parents(path: Path) -> Sequence[Path]:
    return (path.absolute(), *path.absolute().parents)


def _refuse_untrusted(path: Path, trusted: Container[int], makers: Container[int] = ()) -> None:
    """Raise NettopError for a path that another user may have tampered with: one with a symbolic link of theirs, or a
    file of theirs in a shared directory (/tmp). Directories of `makers` are accepted, unless others may write to them.
    """
    places = _with_parents(path)
    for place, parent in zip(places, (*places[1:], places[-1]), strict=True):
        with suppress(FileNotFoundError, NotADirectoryError):
            status = place.lstat()
            is_shared = bool(parent.stat().st_mode & stat.S_ISVTX)
            is_made = status.st_uid in makers and stat.S_ISDIR(status.st_mode)
            if is_made and is_shared and status.st_mode & _WRITABLE_BY_OTHERS:
                raise NettopError(
                    f"other users may write to {place}",
                    f"run chmod go-w {place} if all its files are yours, or use another directory",
                )
            if status.st_uid not in trusted and not is_made and (stat.S_ISLNK(status.st_mode) or is_shared):
                raise NettopError(
                    f"{place} was created by another user (uid {status.st_uid})", "write to another directory"
                )


def _user(uid: int, gid: int) -> User:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return User(uid, gid, (gid,))
    return User(uid, gid, tuple(os.getgrouplist(name, gid)))
