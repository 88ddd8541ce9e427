"""The port that says to which nodes devices may connect."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A live node, as devices choose by it."""

    node_id: str
    """Its incarnation: random, another one after each start."""
    address: str
    """What devices dial, `host:port`; empty if the node does not know by which address it is reached."""
    draining: bool
    """It is about to stop and takes no new devices."""
    streams: int
    """Live streams on it; of other nodes, as they last told."""


class NodeDirectory(Protocol):
    """The live nodes as this node knows them. What it says may be seconds old: a device that goes astray chooses again."""

    def nodes(self) -> list[NodeStatus]:
        """Every live node, this one included. From memory: it neither waits nor fails."""
        ...
