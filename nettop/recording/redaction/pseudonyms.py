# SPDX-License-Identifier: Apache-2.0
"""Replacements of addresses, names and numbers that depend on a key: the same for the same original, and meaningless
to whoever lacks the key.
"""

from __future__ import annotations

from base64 import b32encode
from functools import lru_cache, partial
from hashlib import blake2b
from ipaddress import ip_network
from typing import NamedTuple

from nettop.query.address import MAPPED

KEY_BYTES = 32
_KNOWN = 1 << 16
"""Replacements that are kept, so that each is computed once."""
_NUMBER_BITS = 53
"""As many as in the ids of rows (nettop.snapshots.row_ids)."""


class _Range(NamedTuple):
    """Addresses that stay among themselves, those with the bits of `first` in `mask`. Their first `kept` bits stay."""

    first: int
    mask: int
    kept: int


def _ranges(*declared: tuple[str, int]) -> tuple[_Range, ...]:
    """Return the ranges, the narrowest first."""
    networks = [(ip_network(text), kept) for text, kept in declared]
    ranges = (_Range(int(network.network_address), int(network.netmask), kept) for network, kept in networks)
    return tuple(sorted(ranges, key=lambda range_: -range_.mask))


_IPV4_RANGES = _ranges(
    ("0.0.0.0/0", 0), ("0.0.0.0/8", 32), ("10.0.0.0/8", 8), ("100.64.0.0/10", 10), ("127.0.0.0/8", 32),
    ("169.254.0.0/16", 16), ("172.16.0.0/12", 12), ("192.168.0.0/16", 16), ("224.0.0.0/4", 4), ("224.0.0.0/24", 32),
    ("240.0.0.0/4", 4), ("255.255.255.255/32", 32),
)  # fmt: skip
"""Public addresses stay public, private ones private. What has one meaning everywhere stays as it is: `this host`,
loopback, broadcast, and multicast on a link."""
_IPV6_RANGES = _ranges(
    ("::/0", 0), ("::/127", 128), ("2000::/3", 3), ("fc00::/8", 8), ("fd00::/8", 8), ("fe80::/10", 10),
    ("fe80::/64", 64), ("ff00::/8", 16), ("ff02::/112", 128), ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", 128),
)  # fmt: skip
"""The same for IPv6: multicast keeps its flags and scope. All bits set is no address, but unknown."""


class Pseudonyms:
    """Replacements by one key of KEY_BYTES."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.address = lru_cache(_KNOWN)(self._address)
        self.number = lru_cache(_KNOWN)(self._number)
        self.word = lru_cache(_KNOWN)(self._word)
        self._flips = lru_cache(_KNOWN)(partial(self._digest, size=32))
        """Returns for the byte after some whether each of its bits is flipped: a bit for every beginning of it."""

    def _digest(self, purpose: bytes, content: bytes, size: int) -> bytes:
        """Return the pseudo random function of a content; the purposes are independent of each other."""
        return blake2b(content, key=self._key, person=purpose, digest_size=size).digest()

    def _word(self, text: str) -> str:
        """Return eight letters and digits in place of a name."""
        return b32encode(self._digest(b"word", text.encode("utf-8", "surrogatepass"), 5)).decode().lower()

    def _number(self, number: int, bits: int = _NUMBER_BITS) -> int:
        """Return a number of so many bits in place of another."""
        return int.from_bytes(self._digest(b"number", number.to_bytes(8), 8)) >> 64 - bits

    # --- addresses ----------------------------------------------------------------------------------------------

    def _address(self, raw: bytes) -> bytes:
        """Return an address in place of another; both are 16 bytes, IPv4 in IPv6 form.

        Addresses of one range (`_IPV4_RANGES`) that have the same first bits also have these bits in common afterwards,
        and no more (Crypto-PAn). Among public IPv4 addresses, this holds from 16 bits on: those of different /16
        networks come to different ones.
        """
        if raw.startswith(MAPPED):
            return MAPPED + self._within(raw[len(MAPPED) :], b"ipv4", _IPV4_RANGES)
        return self._within(raw, b"ipv6", _IPV6_RANGES)

    def _within(self, raw: bytes, family: bytes, ranges: tuple[_Range, ...]) -> bytes:
        """Return an address of the same range. One that comes to another range goes on from there: as no two
        addresses come to the same, the range is reached again."""
        home = _range_of(raw, ranges)
        replaced = self._flipped(raw, family, home.kept)
        while _range_of(replaced, ranges) is not home:
            replaced = self._flipped(replaced, family, home.kept)
        return replaced

    def _flipped(self, raw: bytes, family: bytes, kept: int) -> bytes:
        """Return an address whose bits after the first `kept` are flipped or not, depending on all bits before."""
        flipped = bytearray(raw[: kept // 8])
        for at in range(len(flipped), len(raw)):
            flips = self._flips(family, raw[:at])
            flipped.append(_flipped_byte(raw[at], flips, kept - 8 * at))
        return bytes(flipped)


def _flipped_byte(byte: int, flips: bytes, kept: int) -> int:
    """Return a byte whose bits after the first `kept` are flipped where `flips` has a bit for those before."""
    flipped = byte
    for place in range(max(0, kept), 8):
        beginning = 1 << place | byte >> 8 - place
        if flips[beginning >> 3] >> (beginning & 7) & 1:
            flipped ^= 0x80 >> place
    return flipped


def _range_of(raw: bytes, ranges: tuple[_Range, ...]) -> _Range:
    """Return the narrowest range with an address."""
    number = int.from_bytes(raw)
    return next(range_ for range_ in ranges if number & range_.mask == range_.first)
