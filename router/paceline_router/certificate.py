"""The router's certificate and key, from files that are renewed while it runs.

Connections to come use the new one, those that are there go on. The files are polled, as the configuration is.
Invariants: TLS 1.2 is the least; a certificate that cannot be used ends the start with one line, and later changes
nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl

from paceline_api.config import ConfigError, TLSConfig

_log = logging.getLogger(__name__)

POLL_S = 2.0  # wall


class Certificate:
    """ConfigError when the files cannot be used."""

    def __init__(self, files: TLSConfig) -> None:
        self._files = files
        self._refused = ""  # why the files that are there are not in use
        try:
            self._seen = self._read()
            self._context = self._load()
        except OSError as e:  # an SSLError is one
            raise ConfigError(f"TLS: {self._cause(e)}; renew the Secret with the certificate and its key") from e

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.look()

    def look(self) -> None:
        """Takes on what has changed since the last look."""
        try:
            found = self._read()
            if found == self._seen and not self._refused:
                return
            self._seen = found
            self._context = self._load()
        except OSError as e:
            cause, before = self._cause(e), self._refused
            self._refused = cause
            if cause != before:  # not at every look
                _log.warning("certificate refused, the earlier one stays: %s", cause)
        else:
            self._refused = ""
            _log.info("certificate renewed file=%s", self._files.certificate)

    def _read(self) -> tuple[bytes, bytes]:
        return self._files.certificate.read_bytes(), self._files.key.read_bytes()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._files.certificate, self._files.key, password=_no_password)
        return context

    def _cause(self, error: OSError) -> str:
        if isinstance(error, ssl.SSLError):
            strangers = error.reason == "KEY_VALUES_MISMATCH"
            why = "do not belong together" if strangers else f"are no certificate and key in PEM ({error.reason})"
            return f"{self._files.certificate} and {self._files.key} {why}"
        return f"{error.filename or self._files.key}: cannot be read: {error.strerror or error}"


def _no_password() -> str:
    """OpenSSL would ask the terminal for it."""
    raise PermissionError(1, "the key is encrypted, and nobody can be asked for its password")
