"""Whether a certificate is for an address: what TLS looks at for the one who is dialled, and nobody for the one who dials."""

import ipaddress

from cryptography import x509

from chatgrpc.addresses import split_address


def is_for(certificate_pem: bytes, address: str) -> bool:
    """Whether the certificate names the host of `address`, `host:port`, among its alternative names (RFC 9525)."""
    try:
        host, _ = split_address(address)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return any(_matches(host.lower(), name.lower()) for name in names.get_values_for_type(x509.DNSName))


def _matches(host: str, name: str) -> bool:
    """A star stands for the first label, and for nothing else."""
    if name.startswith("*."):
        _, dot, rest = host.partition(".")
        return bool(dot) and rest == name[2:]
    return host.rstrip(".") == name
