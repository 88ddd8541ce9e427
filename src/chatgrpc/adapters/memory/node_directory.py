"""The directory of an embedded node: the node itself."""

import secrets
from collections.abc import Callable

from chatgrpc.ports.node_directory import NodeStatus

_ALL_ADDRESSES = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  compared with, not listened on


class SoleNode:
    """`ports.node_directory.NodeDirectory` of one node. `port` and `draining` are set by who serves."""

    def __init__(self, host: str, streams: Callable[[], int]) -> None:
        """Lists a node that does not listen yet.

        Args:
            host: what the node listens on.
            streams: counts its live streams.
        """
        self.port = 0
        """The port that the node got; nobody can ask before."""
        self.draining = False
        self._node_id = secrets.token_hex(8)
        self._host = host
        self._streams = streams

    def nodes(self) -> list[NodeStatus]:
        """See the port."""
        return [NodeStatus(self._node_id, self._address(), self.draining, self._streams())]

    def _address(self) -> str:
        if self._host in _ALL_ADDRESSES:
            return ""
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"
