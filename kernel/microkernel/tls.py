"""TLS of a front end: the files it needs, and whether they are of use."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from microkernel.errors import InvalidArgument


class TlsContents(NamedTuple):
    """What the files hold, in PEM form; `roots` is None where clients are not checked."""

    certificate: bytes
    key: bytes
    roots: bytes | None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a front end that is served over TLS: the server's certificate chain, its
    unencrypted key, and the roots that the certificates of clients are checked against. Where
    `mutual`, a client without such a certificate is refused.

    `flags` is what the flags that name the files begin with: `--http` for `--http-server-cert`,
    `--http-server-key` and `--http-root-cert`.
    """

    flags: str
    certificate: str
    key: str
    roots: str = ""
    mutual: bool = False

    def contents(self) -> TlsContents:
        """The contents of the files, which fit each other.

        Raises InvalidArgument naming the flag and the file for one that is missing or of no use.
        """
        found = self._read()
        self._context()
        return found

    def context(self) -> ssl.SSLContext:
        """Python's TLS for the server's side. Raises as `contents`."""
        self._read()
        return self._context()

    def unused(self) -> list[str]:
        """What to tell an operator who names files where nothing is served over TLS."""
        paths = {"server-cert": self.certificate, "server-key": self.key, "root-cert": self.roots}
        return [
            f"{self.flags}-{name} has no effect without {self.flags}-use-ssl"
            for name, path in paths.items()
            if path
        ]

    def _read(self) -> TlsContents:
        wanted = self.mutual or self.roots
        return TlsContents(
            _read(f"{self.flags}-server-cert", self.certificate),
            _read(f"{self.flags}-server-key", self.key),
            _read(f"{self.flags}-root-cert", self.roots) if wanted else None,
        )

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # What Python takes by default depends on who built it.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key, password="")  # never ask for one
        except ssl.SSLError as error:
            raise InvalidArgument(
                f"{self.flags}-server-cert '{self.certificate}' and {self.flags}-server-key "
                f"'{self.key}' must be a certificate and its unencrypted key in PEM form: "
                f"{error.reason or error}"
            ) from None
        if self.roots:
            self._trust_roots(context)
        return context

    def _trust_roots(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(self.roots)
        except ssl.SSLError as error:
            raise InvalidArgument(
                f"{self.flags}-root-cert '{self.roots}' must hold certificates in PEM form: "
                f"{error.reason or error}"
            ) from None
        if self.mutual:
            context.verify_mode = ssl.CERT_REQUIRED


def _read(flag: str, path: str) -> bytes:
    if not path:
        raise InvalidArgument(f"{flag} must name a PEM file when serving over TLS")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{flag}: cannot read '{path}': {error.strerror}") from None
