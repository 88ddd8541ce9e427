"""Who takes what part of something that all share: counted by user, or by the address that a call came from."""

import asyncio
import contextlib
import ipaddress
from collections.abc import Iterator
from typing import Any

import grpc

from chatgrpc.edge.errors import StatusError

_IPV6_SITE_BITS = 64
"""One subscriber has at least so many addresses of IPv6."""


class Shares:
    """Places, of which each one who asks may hold so many at a time."""

    def __init__(self, per_holder_max: int, total_max: int | None = None) -> None:
        """
        Args:
            per_holder_max: places of one holder.
            total_max: places of all; None for no limit.
        """
        self._per_holder_max = per_holder_max
        self._total_max = total_max
        self._held: dict[str, int] = {}
        self._total = 0

    def take(self, holder: str) -> bool:
        """Takes a place, if there is one for this holder; it must be given back."""
        held = self._held.get(holder, 0)
        if held >= self._per_holder_max or (self._total_max is not None and self._total >= self._total_max):
            return False
        self._held[holder] = held + 1
        self._total += 1
        return True

    def give_back(self, holder: str) -> None:
        """Gives a place back."""
        self._total -= 1
        left = self._held[holder] - 1
        if left:
            self._held[holder] = left
        else:
            del self._held[holder]

    @contextlib.contextmanager
    def place(self, holder: str) -> Iterator[None]:
        """A place for the length of the block.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, TOO_MANY_CALLS.
        """
        if not self.take(holder):
            raise _too_many()
        try:
            yield
        finally:
            self.give_back(holder)

    def hold(self, holder: str, call: asyncio.Task[Any]) -> None:
        """A place until the call is over, which it is not before its caller has taken the reply.

        Raises:
            StatusError: as above.
        """
        if not self.take(holder):
            raise _too_many()
        call.add_done_callback(lambda _: self.give_back(holder))


def _too_many() -> StatusError:
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
        "Too many calls at the same time. Try again when some have ended, or in a few seconds.",
    )


def address_of(peer: str) -> str:
    """Whom a peer, as gRPC writes it (`ipv4:192.0.2.1:50000`), counts as: its address, of IPv6 the network of 64 bits."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    host = rest.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]").partition("%25")[0]
    if kind == "ipv4":
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_SITE_BITS), strict=False))
