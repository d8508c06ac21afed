# SPDX-License-Identifier: Apache-2.0
"""Whether the file in which the kernel describes its types is there and whole, and if not, what is in its place."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

from nettop.errors import Unsupported, limit_reached
from nettop.kernel.proc_files import Mount, mount_of, mounts

_SYSFS, _BTF = "/sys", "kernel/btf/vmlinux"
BTF_FILE = f"{_SYSFS}/{_BTF}"
_HEADER = struct.Struct("=HBBIIIII")
"""struct btf_header of include/uapi/linux/btf.h."""
_MAGIC = 0xEB9F
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 6
_WITH_TYPES = (
    "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions have since 2021: Linux 5.12 or later"
)
_libc = ctypes.CDLL(None, use_errno=True)


def require_btf(root: Path = Path("/")) -> None:
    """Raise Unsupported unless the file is there and whole. An unmount is advised only where the kernel has the file
    and the mount is what hides it."""
    what = _what_is_wrong(root)
    if not what:
        return
    hiding = mount_of(BTF_FILE, root)
    is_hidden = bool(mounts(root)) and (hiding is None or not _is_sysfs(hiding))
    is_there = _kernel_has_it() if is_hidden else False
    if is_there is False:
        raise Unsupported(f"this kernel does not describe its types ({what})", _WITH_TYPES)
    if hiding is None or not Path(hiding.place).is_relative_to(_SYSFS):
        raise Unsupported(
            f"{what}: {_SYSFS} is not mounted",
            "mount -t sysfs sysfs /sys; in a container give it the host's: docker run -v /sys:/sys:ro",
        )
    if is_there is None:
        raise Unsupported(
            f"{what}: likely hidden by the {hiding.kind} that is mounted at {hiding.place}",
            f"see findmnt --target {BTF_FILE}; if nothing hides it, {_WITH_TYPES}",
        )
    if Path(hiding.place).is_relative_to(Path(BTF_FILE).parent):
        raise Unsupported(
            f"{what}: the kernel's own is hidden by the {hiding.kind} that is mounted at {hiding.place}",
            f"umount {hiding.place}",
        )
    raise Unsupported(
        f"{what}: the kernel has it, but {hiding.place} is {hiding.kind} in place of sysfs",
        "mount -t sysfs sysfs /sys; in a container give it the host's: docker run -v /sys:/sys:ro",
    )


def _what_is_wrong(root: Path) -> str:
    """What the file lacks; empty where it is whole."""
    path = root / BTF_FILE.lstrip("/")
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return f"no {BTF_FILE}"
    except OSError as error:
        if limit := limit_reached(f"{BTF_FILE} cannot be read", error):
            raise limit from error
        return f"{BTF_FILE} cannot be read: {error.strerror}"
    if not header:
        return f"{BTF_FILE} is empty"
    if len(header) < _HEADER.size or struct.unpack_from("=H", header)[0] != _MAGIC:
        return f"{BTF_FILE} does not hold BTF"
    _, _, _, length, types_at, types, strings_at, strings = _HEADER.unpack(header)
    whole = length + max(types_at + types, strings_at + strings)
    return f"{BTF_FILE} is truncated: {size:,} of {whole:,} bytes" if size < whole else ""


def _is_sysfs(mount: Mount) -> bool:
    """Whether a mount shows that part of sysfs which belongs to its place."""
    below = Path("/") / Path(mount.place).relative_to(_SYSFS) if mount.place.startswith(_SYSFS) else None
    return mount.kind == "sysfs" and Path(mount.source) == below


def _kernel_has_it() -> bool | None:
    """Whether the file is in a sysfs of our own, which nobody else sees; None where none may be mounted."""
    context = _libc.syscall(_FSOPEN, b"sysfs", _CLOEXEC)
    if context < 0:
        return None
    try:
        if _libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            return None
        sysfs = _libc.syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    if sysfs < 0:
        return None
    try:
        with suppress(FileNotFoundError):
            return os.stat(_BTF, dir_fd=sysfs).st_size > 0
        return False
    finally:
        os.close(sysfs)
