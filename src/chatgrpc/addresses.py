"""Addresses as people write them: `host:port`, an IPv6 host in brackets, several separated by commas."""

import ipaddress
import re

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]{1,255})):(?P<port>[0-9]{1,5})")


def split_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of a `host:port`.

    Raises:
        ValueError: it is not one; the message says how it is written, and does not repeat it.
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or not 0 < int(found["port"]) <= 65_535:
        raise ValueError("must be host:port, such as 10.0.0.7:2379 or [2001:db8::7]:2379")
    return found["v6"] or found["host"], int(found["port"])


def split_addresses(text: str) -> list[tuple[str, int]]:
    """Hosts and ports of a list of `host:port` with commas between.

    Raises:
        ValueError: one of them is not one; the message says which.
    """
    addresses = []
    for number, part in enumerate(text.split(","), start=1):
        try:
            addresses.append(split_address(part))
        except ValueError as error:
            raise ValueError(f"number {number} of the list {error}") from None
    return addresses


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_wildcard(host: str) -> bool:
    """Whether listening on the address means to listen on all addresses of the machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than `localhost` counts as reachable by others."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
