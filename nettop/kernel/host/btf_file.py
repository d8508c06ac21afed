# SPDX-License-Identifier: Apache-2.0
"""Check that the kernel's BTF file is present and complete, and report what is wrong if it is not."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

from nettop.errors import Unsupported, limit_reached
from nettop.kernel.host.proc_files import Mount, mount_of, mounts

_SYSFS, _BTF = "/sys", "kernel/btf/vmlinux"
BTF_FILE = f"{_SYSFS}/{_BTF}"
_HEADER = struct.Struct("=HBBIIIII")
"""struct btf_header of include/uapi/linux/btf.h."""
_MAGIC = 0xEB9F
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 6
_REMEDY_NO_BTF = (
    "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions have since 2021: Linux 5.12 or later"
)
_libc = ctypes.CDLL(None, use_errno=True)


def require_btf(root: Path = Path("/")) -> None:
    """Raise Unsupported unless the file is present and complete. Advise an unmount only if the kernel has the file and
    a mount hides it."""
    what = _what_is_wrong(root)
    if not what:
        return
    hiding = mount_of(BTF_FILE, root)
    is_hidden = bool(mounts(root)) and (hiding is None or not _is_sysfs(hiding))
    is_there = _kernel_has_it() if is_hidden else False
    if is_there is False:
        raise Unsupported(f"this kernel does not describe its types ({what})", _REMEDY_NO_BTF)
    if hiding is None or not Path(hiding.place).is_relative_to(_SYSFS):
        raise Unsupported(
            f"{what}: {_SYSFS} is not mounted",
            "mount -t sysfs sysfs /sys; in a container, mount the host's: docker run -v /sys:/sys:ro",
        )
    if is_there is None:
        raise Unsupported(
            f"{what}: likely hidden by the {hiding.kind} mounted at {hiding.place}",
            f"see findmnt --target {BTF_FILE}; if nothing hides it, {_REMEDY_NO_BTF}",
        )
    if Path(hiding.place).is_relative_to(Path(BTF_FILE).parent):
        raise Unsupported(
            f"{what}: the kernel's own is hidden by the {hiding.kind} mounted at {hiding.place}",
            f"umount {hiding.place}",
        )
    raise Unsupported(
        f"{what}: the kernel has it, but {hiding.place} is {hiding.kind} instead of sysfs",
        "mount -t sysfs sysfs /sys; in a container, mount the host's: docker run -v /sys:/sys:ro",
    )


def _what_is_wrong(root: Path) -> str:
    """Describe what is wrong with the file; empty if it is complete."""
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
    """Return whether a mount is sysfs and shows the part that belongs at its mount point."""
    below = Path("/") / Path(mount.place).relative_to(_SYSFS) if mount.place.startswith(_SYSFS) else None
    return mount.kind == "sysfs" and Path(mount.source) == below


def _kernel_has_it() -> bool | None:
    """Return whether a private mount of sysfs has the file; None if sysfs cannot be mounted."""
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
