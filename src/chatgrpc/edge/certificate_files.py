"""The certificate of the public port, read again when its files change, so that a renewal ends no stream."""

import threading
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from chatgrpc.start_error import StartError

_log = structlog.get_logger(__name__)

_Version = tuple[tuple[int, int, int], ...]


class CertificateFiles:
    """A certificate chain and its key, as PEM.

    Connections that begin after the files have changed are shown what stands there. What cannot be used (one of the two was
    replaced and the other not yet, say) is logged once, and the certificate from before goes on being shown.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self._looking = threading.Lock()
        self._version: _Version | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What a gRPC server needs of them; it asks again before each handshake, on threads of its own.

        Raises:
            StartError: they cannot be read, or are no certificate and its key.
        """

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            pair = self.renewed()
            return None if pair is None else grpc.ssl_server_certificate_configuration([pair])

        first = grpc.ssl_server_certificate_configuration([self.first()])
        return grpc.dynamic_ssl_server_credentials(first, renewed)  # type: ignore[arg-type]  # its stub knows no None

    def first(self) -> tuple[bytes, bytes]:
        """The key and the certificate chain, as PEM.

        Raises:
            StartError: as above.
        """
        self._version = self._look()
        try:
            return self._read()
        except OSError as error:
            raise StartError(f"Cannot read the TLS file {error.filename}: {error.strerror}.") from error
        except ValueError as error:
            cert_file, key_file = self._files
            raise StartError(f"Are {cert_file} and {key_file} a TLS certificate and its key, as PEM? {error}") from error

    def renewed(self) -> tuple[bytes, bytes] | None:
        """The same if the files have changed since they were last read, and can be used; else None. Any thread may call it."""
        with self._looking:
            version = self._look()
            if version == self._version:
                return None
            self._version = version
            try:
                renewed = self._read()
            except (OSError, ValueError) as error:
                _log.warning("certificate_not_renewed", file=str(self._files[0]), error=str(error))
                return None
        _log.info("certificate_renewed", file=str(self._files[0]))
        return renewed

    def _look(self) -> _Version:
        """Changes when a file does; empty if one is not there."""
        try:
            stats = [file.stat() for file in self._files]
        except OSError:
            return ()
        return tuple((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats)

    def _read(self) -> tuple[bytes, bytes]:
        certificate, key = (file.read_bytes() for file in self._files)
        try:
            ours = load_pem_private_key(key, None).public_key()
        except (ValueError, TypeError) as error:  # the second if it needs a password
            raise ValueError(f"The key cannot be used: {error}") from error
        theirs = x509.load_pem_x509_certificates(certificate)[0].public_key()
        shown, held = (each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for each in (theirs, ours))
        if shown != held:
            raise ValueError("The key is another certificate's.")
        return key, certificate
