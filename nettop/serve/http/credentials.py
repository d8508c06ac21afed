# SPDX-License-Identifier: Apache-2.0
"""The token that requests need and the certificate of TLS: read from files, and read again on request."""

from __future__ import annotations

import shlex
import ssl
from contextlib import ExitStack
from dataclasses import dataclass, field

from nettop.errors import NettopError, PermissionMissing, UsageError
from nettop.reading import read_with_mode
from nettop.settings import ServeSettings
from nettop.writing import memory_file, path_in_memory, why_not

LEAST_TOKEN = 16
"""Characters. As many hexadecimal digits are 64 bits, which nobody tries out over a network."""
_MOST_TOKEN = 1024
_MOST_TOKEN_BYTES, _MOST_PEM_BYTES = 4096, 1 << 20
_OTHERS = 0o007
"""What users may who are neither the owner nor in the group: systemd gives credentials to a group."""


@dataclass(eq=False)
class Credentials:
    """The token, as bytes, and the TLS context; None: none is needed, and plain HTTP. `is_final`: read only once."""

    settings: ServeSettings = field(default_factory=ServeSettings)
    token: bytes | None = None
    tls: ssl.SSLContext | None = None
    is_final: bool = False

    def reload(self) -> str:
        """Read the files again: all, or none if one of them cannot be used. Return what was done, to report it.

        Raises as `read_credentials`.
        """
        if self.is_final and (self.token or self.tls):
            raise UsageError("files that who called sudo has named are not read again as another user")
        new = read_credentials(self.settings)
        self.token, self.tls = new.token, new.tls
        read = [name for name, value in (("token", new.token), ("certificate", new.tls)) if value is not None]
        if not read:
            return "there is no token and no certificate to read again"
        return f"the {' and the '.join(read)} {'were' if len(read) > 1 else 'was'} read again"


def read_credentials(settings: ServeSettings) -> Credentials:
    """What the files of the settings hold. Raises UsageError for files that cannot be used, PermissionMissing."""
    token = None if settings.token_file is None else _read_token(settings.token_file)
    tls = None
    if settings.cert is not None and settings.key is not None:
        tls = _tls_context(settings.cert, settings.key)
    return Credentials(settings, token, tls)


def _read_token(path: str) -> bytes:
    try:
        content, mode = read_with_mode(path, _MOST_TOKEN_BYTES)
    except OSError as error:
        raise _unreadable("token file", path, error) from error
    _check_secret("token file", path, mode)
    token, quoted = content.strip(), shlex.quote(path)
    remedy = f"(umask 077; openssl rand -hex 32 > {quoted})"
    if len(token) < LEAST_TOKEN:
        raise UsageError(f"the token in {path} has fewer than {LEAST_TOKEN} characters", remedy)
    if len(token) > _MOST_TOKEN or not all(0x20 < byte < 0x7F for byte in token):
        what = f"the token file {path} is not one line of at most {_MOST_TOKEN} printable ASCII characters"
        raise UsageError(f"{what} without spaces", remedy)
    return token


def _tls_context(cert: str, key: str) -> ssl.SSLContext:
    with ExitStack() as copies:
        # OpenSSL opens files by name, waits for a FIFO, and does not say which of the files it cannot read.
        certs, _ = _read_pem("certificate", cert)
        keys, mode = _read_pem("key", key)
        _check_secret("key", key, mode)
        paths = (
            copies.enter_context(path_in_memory(memory_file("nettop-tls"), content))
            for content in (certs, keys)
        )
        return _loaded_context(cert, key, *paths)


def _read_pem(name: str, path: str) -> tuple[bytes, int]:
    try:
        return read_with_mode(path, _MOST_PEM_BYTES)
    except OSError as error:
        raise _unreadable(name, path, error) from error


def _check_secret(name: str, path: str, mode: int) -> None:
    """Raise UsageError if users beside the owner and the group may read or change a file."""
    if mode & _OTHERS:
        raise UsageError(
            f"other users may read or change the {name} {path}", f"chmod 600 {shlex.quote(path)}"
        )


def _loaded_context(cert: str, key: str, certs: str, keys: str) -> ssl.SSLContext:
    """Return the context of the copies `certs` and `keys`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password of its own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certs, keys, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            remedy = "give the key that the certificate was made for; the certificate comes first in its file"
            raise UsageError(f"the key in {key} is not that of the certificate in {cert}", remedy) from error
        raise UsageError(
            _unusable(cert, key, certs, error), "both are PEM files; the key has no password"
        ) from error
    return context


def _unusable(cert: str, key: str, certs: str, error: ssl.SSLError) -> str:
    """Which file it is: a context that takes the certificate alone shows that."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certs)
    except ssl.SSLError:
        return f"there is no usable certificate in {cert}: {reason}"
    return f"there is no usable key in {key}: {reason}"


def _unreadable(name: str, path: str, error: OSError) -> NettopError:
    why = why_not(error)
    what = f"cannot read the {name} {path}: {why[:1].lower()}{why[1:]}"
    if isinstance(error, PermissionError):
        return PermissionMissing(what, "have it owned by the user that nettop runs as, with mode 600")
    return UsageError(what, "give the path of a file that can be read")
