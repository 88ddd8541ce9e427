"""Links between the nodes of a cluster: one gRPC stream a pair, on which `core.links` messages go both ways.

`codec.py` has the bytes, `outbox.py` what waits for a peer, `link.py` a stream from Hello to end, `relay.py` which links there
are, `transport.py` how gRPC is set.
"""

from chatgrpc.relay.link import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, LinkStatus
from chatgrpc.relay.relay import Relay, RelayOptions
from chatgrpc.relay.transport import NodeUnreachableError, Tls, describe_node

__all__ = [
    "PROTOCOL_VERSION_MAX",
    "PROTOCOL_VERSION_MIN",
    "LinkStatus",
    "NodeUnreachableError",
    "Relay",
    "RelayOptions",
    "Tls",
    "describe_node",
]
