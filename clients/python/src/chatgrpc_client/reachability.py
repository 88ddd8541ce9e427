"""Why a server could not be reached, in words that say what to change. No I/O.

gRPC's own texts name the addresses it tried and OpenSSL's codes; what a person has to change can be read from them.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_UNREACHABLE = re.compile(r"failed to connect to all addresses|errors resolving|DNS resolution failed|hostname lookup")
_VERIFY_FAILED = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:]+)")
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Those that gRPC looks at, in its order."""
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


def host_of(address: str) -> str:
    """The host of a `host:port` or of another gRPC target, without brackets; empty for a socket of this machine."""
    if address.startswith("unix"):
        return ""
    bare = address.rpartition("/")[2]
    host, colon, port = bare.rpartition(":")
    return (host if colon and port.isdecimal() else bare).strip("[]")


def is_loopback(address: str) -> bool:
    """Whether only this machine is meant, so that nobody else can listen and no proxy can help."""
    host = host_of(address)
    try:
        at = ipaddress.ip_address(host)
        return at.is_loopback or at.is_unspecified  # to connect to 0.0.0.0 is to connect to this machine
    except ValueError:
        return host in {"", "localhost"} or host.endswith(".localhost")


def proxy_of(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """`URL (variable)` of the proxy through which gRPC connects to an address, without user and password; empty for none."""
    if is_loopback(address):
        return ""
    host = host_of(address)
    exempt = next((environment[name] for name in _NO_PROXY_VARIABLES if environment.get(name)), "")
    if any(host.endswith(entry.strip()) for entry in exempt.split(",") if entry.strip()):
        return ""
    name = next((name for name in _PROXY_VARIABLES if environment.get(name)), "")
    if not name:
        return ""
    proxy = urlsplit(environment[name])
    return f"{proxy.scheme}://{proxy.hostname or ''}{f':{proxy.port}' if proxy.port else ''} ({name})"


def explain(details: str, address: str, *, tls: bool) -> str:
    """What gRPC says of a call that failed, in words that say what to change."""
    if not _UNREACHABLE.search(details):
        return details
    proxy = proxy_of(address)
    by = f" through the proxy {proxy}" if proxy else ""
    return f"the server cannot be reached{by}: {_reason(details, address, tls)}"


def _reason(details: str, address: str, tls: bool) -> str:
    found = _VERIFY_FAILED.search(details)
    if found is not None:
        return f"its certificate is not trusted ({found[1].strip()}); {_advice(found[1])}"
    if "Hostname Verification" in details or "No match found for server name" in details:
        return f"its certificate is not made out to {host_of(address)}; use a name or an address that it holds"
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS; it is a server without TLS, to be reached without it, or something else listens there"
    if "handshake failed" in details.lower():
        return f"TLS failed: {details.rpartition('OPENSSL_internal:')[2].removesuffix(': OK') or details}"
    if "http1.x server" in details or "Failed parsing HTTP/2" in details:
        return "what answers there is no gRPC server"
    if re.search(r"Socket closed|Connection reset|recvmsg", details):
        if tls:
            return "it ended the connection at once; perhaps it is no gRPC server"
        return "it ended the connection at once; if it uses TLS, say so here too"
    if re.search(r"Domain name not found|[Nn]ame or service not known|lookup|resol", details):
        return f"no address is known for the name {host_of(address)}"
    last = details.removesuffix(": OK").rpartition(": ")[2].strip(" ]")
    return last or details


def _advice(reason: str) -> str:
    if "expired" in reason:
        return "it must be renewed"
    if "not yet valid" in reason:
        return "look at the clocks of both machines"
    return "trust the authority that signed it, or the certificate itself if it signed itself"
