"""Which node of the server to connect to. No I/O: told what the server lists, and which node was left.

A client knows two kinds of addresses: those that it was configured with, and those of the nodes that the server listed when it
was last asked (`NodeService.ListNodes`). It prefers the latter, since the server knows which of its nodes live and how much
they carry, and falls back on the former, since a list grows old.
"""

import random
import re
from collections.abc import Iterable, Sequence
from itertools import islice

from chatgrpc.v1.node_service_pb2 import Node

LISTED_MAX = 1_000
"""Nodes of a list that are kept; no server tells more."""
LISTED_TRIES_MAX = 3
"""After so many addresses in a row without a live session the list counts as old, and those configured are next."""
_LISTED_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}")


class Nodes:
    """The nodes of one server, as one client knows them.

    Guarantee: `address` is never the one that was just left as long as another is known.
    """

    def __init__(self, addresses: Sequence[str], randomness: random.Random | None = None) -> None:
        """Chooses one of the addresses at random.

        Args:
            addresses: those configured; at least one.
            randomness: makes the choice repeatable.
        """
        assert addresses
        self._configured = tuple(dict.fromkeys(addresses))
        self._randomness: random.Random = randomness or random.SystemRandom()
        self._listed: list[Node] = []
        self._left: set[str] = set()
        """Addresses that failed, or sent the client away, since it was last live."""
        self.address = self._randomness.choice(self._configured)
        """Where to connect."""

    def listed(self, nodes: Iterable[Node]) -> None:
        """The server, asked at `address`, lists these.

        One single node counts only under the address at which it was reached: there is no choice, and the name that a node
        without a cluster has for itself may be of no use here (behind a proxy, in a container).
        """
        known = [node for node in islice(nodes, LISTED_MAX) if _LISTED_ADDRESS.fullmatch(node.address)]
        addresses = {node.address for node in known}
        self._listed = known if len(addresses) > 1 or addresses == {self.address} else []

    def live(self) -> None:
        """A session at `address` became live."""
        self._left.clear()

    def another(self) -> str | None:
        """A node to go to instead of the one at `address`; None if no other is known."""
        self._left.add(self.address)
        chosen = self._choose()
        if chosen is None:  # everything was tried; what failed earlier may be back
            self._left = {self.address}
            chosen = self._choose()
        return chosen

    def leave(self) -> None:
        """`address` failed, or sends the client away: chooses another."""
        self.go_to(self.another() or self.address)

    def go_to(self, address: str) -> None:
        """`address` is left for this one, which `another` named."""
        self.address = address

    def pass_over(self, address: str) -> None:
        """One that `another` named is of no more use than the one at `address`."""
        self._left.add(address)

    def _choose(self) -> str | None:
        configured = [address for address in self._configured if address not in self._left]
        if len(self._left) <= LISTED_TRIES_MAX or not configured:
            listed = [node for node in self._listed if not node.draining and node.address not in self._left]
            if listed:
                # The less loaded of two at random: choosing the least loaded of all sends every client to the same one
                # (M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
                pair = self._randomness.sample(listed, min(2, len(listed)))
                return min(pair, key=lambda node: node.streams).address
        return self._randomness.choice(configured) if configured else None
