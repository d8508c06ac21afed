# SPDX-License-Identifier: Apache-2.0
"""The access token and the TLS certificate: read from files, and reloaded on request."""

from __future__ import annotations

import shlex
import ssl
from contextlib import ExitStack
from dataclasses import dataclass, field

from nettop.errors import PermissionMissing, UsageError
from nettop.reading import read_with_mode
from nettop.settings.serve import ServeSettings
from nettop.writing import memory_file, path_in_memory, why_not

MIN_TOKEN_CHARS = 16
"""Minimum characters. As hexadecimal digits they are 64 bits, beyond brute force over a network."""
_MOST_TOKEN = 1024
_MOST_TOKEN_BYTES, _MOST_PEM_BYTES = 4096, 1 << 20
_OTHERS = 0o007
"""Permission bits of others. Group access is allowed: systemd gives credentials to a group."""


@dataclass(eq=False)
class Credentials:
    """The token (None: none required) and the TLS context (None: plain HTTP). `is_final` forbids reloading."""

    settings: ServeSettings = field(default_factory=ServeSettings)
    token: bytes | None = None
    tls: ssl.SSLContext | None = None
    is_final: bool = False

    def reload(self) -> str:
        """Reload the files: all, or none if one is unusable. Return a report of what was reloaded.

        Raise what `read_credentials` raises, and UsageError if reloading is forbidden.
        """
        if self.is_final and (self.token or self.tls):
            raise UsageError("files named by the user who called sudo cannot be reloaded as another user")
        new = read_credentials(self.settings)
        self.token, self.tls = new.token, new.tls
        read = [name for name, value in (("token", new.token), ("certificate", new.tls)) if value is not None]
        if not read:
            return "no token or certificate to reload"
        return f"reloaded the {' and the '.join(read)}"


def read_credentials(settings: ServeSettings) -> Credentials:
    """Read the files in the settings. Raise UsageError for unusable files, PermissionMissing for unreadable ones."""
    token = None if settings.token_file is None else _read_token(settings.token_file)
    cert, key = settings.cert, settings.key
    tls = None if cert is None or key is None else _tls_context(cert, key)
    return Credentials(settings, token, tls)


def _read_token(path: str) -> bytes:
    token, quoted = _read("token file", path, _MOST_TOKEN_BYTES).strip(), shlex.quote(path)
    remedy = f"(umask 077; openssl rand -hex 32 > {quoted})"
    if len(token) < MIN_TOKEN_CHARS:
        raise UsageError(f"the token in {path} has fewer than {MIN_TOKEN_CHARS} characters", remedy)
    if len(token) > _MOST_TOKEN or not all(0x20 < byte < 0x7F for byte in token):
        what = f"the token file {path} is not one line of at most {_MOST_TOKEN} printable ASCII characters"
        raise UsageError(f"{what} without spaces", remedy)
    return token


def _tls_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with ExitStack() as copies:
        # OpenSSL opens files by name, blocks on a FIFO, and does not say which file it cannot read.
        certs, keys = (
            copies.enter_context(path_in_memory(memory_file("nettop-tls"), content))
            for content in (
                _read("certificate", cert, _MOST_PEM_BYTES, is_secret=False),
                _read("key", key, _MOST_PEM_BYTES),
            )
        )
        try:
            # Without a password callback OpenSSL would prompt on the terminal.
            context.load_cert_chain(certs, keys, password=lambda: b"")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                what = f"the key in {key} does not match the certificate in {cert}"
                remedy = "give the certificate's own key; the server certificate must come first in its file"
            else:
                what = _unusable(cert, key, certs, error)
                remedy = "give PEM files, and a key without a password"
            raise UsageError(what, remedy) from error
    return context


def _read(name: str, path: str, most_bytes: int, *, is_secret: bool = True) -> bytes:
    """Return the content of a file.

    Raise UsageError if users other than the owner and the group may read or change a secret, or if there is no such
    file; PermissionMissing if nettop may not read it.
    """
    try:
        content, mode = read_with_mode(path, most_bytes)
    except OSError as error:
        why = why_not(error)
        what = f"cannot read the {name} {path}: {why[:1].lower()}{why[1:]}"
        if isinstance(error, PermissionError):
            remedy = "make it owned by the user that nettop runs as, with mode 600"
            raise PermissionMissing(what, remedy) from error
        raise UsageError(what, "give the path of a readable file") from error
    if is_secret and mode & _OTHERS:
        raise UsageError(
            f"other users may read or change the {name} {path}", f"chmod 600 {shlex.quote(path)}"
        )
    return content


def _unusable(cert: str, key: str, certs: str, error: ssl.SSLError) -> str:
    """Say which file is unusable, by loading the certificate alone."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certs)
    except ssl.SSLError:
        return f"no usable certificate in {cert}: {reason}"
    return f"no usable key in {key}: {reason}"
