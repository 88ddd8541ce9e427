"""Whether a certificate is for an address."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chatgrpc.relay.certificates import is_for

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "10.0.0.9")])


def certificate(*names: x509.GeneralName) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(1)
    builder = x509.CertificateBuilder(NAME, NAME, KEY.public_key(), x509.random_serial_number(), now - day, now + day)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def ip(address: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("names", "address", "fits"),
    [
        ([ip("10.0.0.1")], "10.0.0.1:50561", True),
        ([ip("10.0.0.1"), ip("10.0.0.2")], "10.0.0.2:1", True),
        ([ip("10.0.0.1")], "10.0.0.2:50561", False),
        ([ip("2001:db8::1")], "[2001:db8:0::1]:50561", True),
        ([x509.DNSName("10.0.0.1")], "10.0.0.1:1", False),
        ([x509.DNSName("node-1.example")], "Node-1.example:1", True),
        ([x509.DNSName("node-1.example")], "node-2.example:1", False),
        ([x509.DNSName("*.example")], "node-2.example:1", True),
        ([x509.DNSName("*.example")], "a.node-2.example:1", False),
        ([x509.DNSName("*.example")], "example:1", False),
        ([x509.RFC822Name("node-1.example")], "node-1.example:1", False),
        ([], "10.0.0.9:1", False),
    ],
)
def test_the_host_must_be_among_the_alternative_names(names: list[x509.GeneralName], address: str, fits: bool) -> None:
    assert is_for(certificate(*names), address) is fits


def test_what_is_no_certificate_is_for_nobody() -> None:
    assert not is_for(b"", "10.0.0.1:1")
    assert not is_for(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "10.0.0.1:1")
    assert not is_for(certificate(ip("10.0.0.1")), "nowhere")
