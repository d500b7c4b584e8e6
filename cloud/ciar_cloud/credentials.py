"""TLS of the server: certificate and key from files, read again when they change.

A handshake that begins after a change sees the new ones; connections that are open stay.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from ciar.errors import InvalidInput
from ciar_cloud.followed import Followed


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files. client_ca: whose clients may connect (mutual TLS); None: anybody's."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.cert, self.key, self.client_ca) if path is not None]

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises `InvalidInput` if they cannot be read, or are not for each other."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            remedy = f"no certificate with its key in {self.key}: {error}"
            raise InvalidInput("tls-cert", str(self.cert), remedy) from None
        roots = None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
                roots = self.client_ca.read_bytes()
            except (OSError, ssl.SSLError) as error:
                remedy = f"no certificate of an authority: {error}"
                raise InvalidInput("tls-client-ca", str(self.client_ca), remedy) from None
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files."""
    pair = Followed(files.paths, files.read)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return pair.value if pair.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        pair.value,
        fetch,  # type: ignore[arg-type]  # the stubs forget that it may return None
        require_client_authentication=files.client_ca is not None,
    )
