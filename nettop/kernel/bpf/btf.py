# SPDX-License-Identifier: Apache-2.0
"""Header slices: C structs that declare only the members a program uses, at their offsets in this kernel.

The kernel describes its types in /sys/kernel/btf/vmlinux, which libbpf parses. Programs therefore compile without
kernel headers, and a `_Static_assert` per member proves that compiler and kernel agree.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nettop.errors import Unsupported, limit_reached
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.host.facts import BTF_FILE, Host

# Kinds of BTF types (include/uapi/linux/btf.h).
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF, _FUNC, _ENUM64 = 1, 2, 3, 4, 5, 6, 8, 12, 19
_VOLATILE, _CONST, _RESTRICT, _TYPE_TAG = 9, 10, 11, 18
_TRANSPARENT = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_AGGREGATES = frozenset({_STRUCT, _UNION})
_TYPE_HEADER_BYTES = 12
_INT_SIGNED = 1
_NOT_READ = f"libbpf cannot parse the kernel's types in {BTF_FILE}"


class MissingInKernel(Unsupported):
    """Error for a type or member that this kernel lacks."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The members of a kernel struct that a program uses.

    `members` maps the name used in C to the path inside the struct; a path may cross anonymous members. A member that
    is a bit-field in some kernels and a byte in others is read by a macro, `NAME_of(pointer)`. Members in `optional`
    may be missing: programs test `#ifdef HAS_STRUCT_NAME` (upper case).
    """

    struct: str
    members: dict[str, str]
    optional: dict[str, str]


class _Type(NamedTuple):
    kind: int
    length: int
    has_bitfields: bool
    size_or_type: int
    body: int


class _Member(NamedTuple):
    offset: int
    end: int
    name: str
    declaration: str
    macro: str = ""


class Btf:
    """The types of the running kernel. Raises Unsupported if the kernel has no BTF or it cannot be read."""

    def __init__(self) -> None:
        self._lib = bpf.libbpf()
        self._lib.btf__parse.restype = self._lib.btf__type_by_id.restype = ctypes.c_void_p
        self._lib.btf__name_by_offset.restype = ctypes.c_char_p
        self._btf = ctypes.c_void_p(self._lib.btf__parse(BTF_FILE.encode(), None))
        if not self._btf.value:
            number = ctypes.get_errno()
            Host().require_btf()  # raises a better error if the file itself is at fault
            raise limit_reached(_NOT_READ, os.strerror(number)) or Unsupported(
                f"{_NOT_READ} ({os.strerror(number).lower()})",
                "upgrade the distribution's libbpf: it may be too old for this kernel",
            )

    def close(self) -> None:
        """Free libbpf's memory."""
        self._lib.btf__free(self._btf)

    def header(self, piece: Slice) -> str:
        """Return C text that declares the slice under the kernel's own struct name.

        Raise MissingInKernel if this kernel lacks the struct or a member that is not optional.
        """
        members = [self._find(piece.struct, name, path) for name, path in piece.members.items()]
        flags = []
        for name, path in piece.optional.items():
            try:
                members.append(self._find(piece.struct, name, path))
            except MissingInKernel:
                continue
            flags.append(f"#define HAS_{piece.struct}_{name} 1".upper().replace("#DEFINE", "#define"))
        flags += [member.macro for member in members if member.macro]
        places = sorted({member._replace(macro="") for member in members})  # bit-fields may share a byte
        lines = [*flags, f"struct {piece.struct} {{", *_layout(places), "};"]
        lines += [
            f'_Static_assert(__builtin_offsetof(struct {piece.struct}, {name}) == {offset}, "{name}");'
            for offset, _, name, _, _ in places
        ]
        return "\n".join(lines) + "\n"

    def tracepoint(self, name: str) -> int:
        """Return the type id of a tracepoint's arguments. Raise MissingInKernel if this kernel lacks the
        tracepoint."""
        return self._id(f"btf_trace_{name}", _TYPEDEF, f"tracepoint {name}")

    def function(self, name: str) -> int:
        """Return the type id of a kernel function. Raise MissingInKernel if this kernel lacks it."""
        return self._id(name, _FUNC, f"function {name}")

    def arguments(self, tracepoint: str) -> int:
        """Return a tracepoint's number of arguments. Raise MissingInKernel if there is no such tracepoint."""
        prototype = self._type(self._bare(self.tracepoint(tracepoint)))
        while prototype.kind == _PTR:
            prototype = self._type(self._bare(prototype.size_or_type))
        return prototype.length - 1  # the first is the tracepoint's private data

    def enumerators(self, name: str) -> dict[int, str]:
        """Map an enum's values, which differ between kernels, to their names; the first name wins.

        Raise MissingInKernel if there is no such enum.
        """
        body = self._type(self._id(name, _ENUM, f"enum {name}"))
        names: dict[int, str] = {}
        for name_off, number in (ctypes.c_uint32 * 2 * body.length).from_address(body.body):
            names.setdefault(number, self._name(name_off))
        return names

    def _id(self, name: str, kind: int, what: str) -> int:
        type_id: int = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        if type_id <= 0:
            raise MissingInKernel(f"this kernel has no {what}")
        return type_id

    # --- finding members ----------------------------------------------------------------------------------

    def _find(self, struct: str, name: str, path: str) -> _Member:
        """Find the member at a dotted path and declare it as `name`."""
        type_id = self._id(struct, _STRUCT, f"struct {struct}")
        bits = width = 0
        for part in path.split("."):
            hit = self._look_up(self._bare(type_id), part)
            if hit is None:
                raise MissingInKernel(f"struct {struct} has no member {path} in this kernel")
            bits, type_id, width = bits + hit[0], hit[1], hit[2]
        offset, shift = divmod(bits, 8)
        if width:
            if shift + width > 8:
                raise MissingInKernel(
                    f"bit-field {path} of struct {struct} spans several bytes in this kernel"
                )
            byte = f"byte_{offset}"
            macro = f"#define {name}_of(from) ((from)->{byte} >> {shift} & {(1 << width) - 1})"
            return _Member(offset, offset + 1, byte, f"__read_alone u8 {byte};", macro)
        base, suffix = self._c_type(type_id)
        alone = "" if suffix else "__read_alone "
        size = self._size(type_id)
        macro = f"#define {name}_of(from) ((from)->{name})" if size == 1 else ""
        return _Member(offset, offset + size, name, f"{alone}{base} {name}{suffix};", macro)

    def _look_up(self, type_id: int, name: str) -> tuple[int, int, int] | None:
        """Return a member's bit offset, type and bit-field width (0 if not a bit-field). Search anonymous members too,
        depth first."""
        if self._type(type_id).kind not in _AGGREGATES:
            return None
        for member, member_type, bits, width in self._members(type_id):
            if member == name:
                return bits, member_type, width
            if not member and (hit := self._look_up(self._bare(member_type), name)):
                return bits + hit[0], *hit[1:]
        return None

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield each member's name, type, bit offset and bit-field width (0 if not a bit-field)."""
        kind = self._type(type_id)
        triples = (ctypes.c_uint32 * 3 * kind.length).from_address(kind.body)
        for name_off, member_type, offset in triples:
            width, bits = divmod(offset, 1 << 24) if kind.has_bitfields else (0, offset)
            yield self._name(name_off), member_type, bits, width

    def _c_type(self, type_id: int) -> tuple[str, str]:
        """Return a member's C type and its suffix after the name. Pointers become integers."""
        type_id = self._bare(type_id)
        kind = self._type(type_id)
        if kind.kind == _INT:
            encoding = ctypes.c_uint32.from_address(kind.body).value >> 24
            return ("s" if encoding & _INT_SIGNED else "u") + str(kind.size_or_type * 8), ""
        if kind.kind in (_ENUM, _ENUM64):
            return f"u{kind.size_or_type * 8}", ""
        if kind.kind == _PTR:
            return "u64", ""
        if kind.kind == _ARRAY:
            element, _, length = (ctypes.c_uint32 * 3).from_address(kind.body)
            base, suffix = self._c_type(element)
            return base, f"[{length}]{suffix}"
        if kind.kind in _AGGREGATES:
            return self._c_aggregate(type_id, kind.size_or_type)
        raise MissingInKernel(f"no C type for BTF kind {kind.kind}")

    def _c_aggregate(self, type_id: int, size: int) -> tuple[str, str]:
        """Return a one-member struct (atomic_t, kuid_t, possible_net_t) as its member, any other as an array of
        words."""
        members = list(self._members(type_id))
        if len(members) == 1 and self._size(members[0][1]) == size:
            return self._c_type(members[0][1])
        return ("u8", f"[{size}]") if size % 4 else ("u32", f"[{size // 4}]")

    # --- reading types ------------------------------------------------------------------------------------

    def _type(self, type_id: int) -> _Type:
        at = self._lib.btf__type_by_id(self._btf, type_id)
        _, info, size = (ctypes.c_uint32 * 3).from_address(at)  # struct btf_type
        return _Type((info >> 24) & 31, info & 0xFFFF, bool(info >> 31), size, at + _TYPE_HEADER_BYTES)

    def _bare(self, type_id: int) -> int:
        """Strip typedefs and qualifiers from a type."""
        while (kind := self._type(type_id)).kind in _TRANSPARENT:
            type_id = kind.size_or_type
        return type_id

    def _size(self, type_id: int) -> int:
        return int(self._lib.btf__resolve_size(self._btf, type_id))

    def _name(self, offset: int) -> str:
        name: bytes = self._lib.btf__name_by_offset(self._btf, offset)
        return name.decode()


def _layout(members: list[_Member]) -> list[str]:
    """Return the members' declarations with padding between them."""
    lines, at = [], 0
    for offset, end, _, declaration, _ in members:
        if offset > at:
            lines.append(f"  char pad_{at}[{offset - at}];")
        lines.append(f"  {declaration}")
        at = end
    return lines
