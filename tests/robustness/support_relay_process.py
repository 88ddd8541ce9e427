"""A node that is nothing but its links, in a process of its own: it sends back what it gets."""

import asyncio
import sys

from chatgrpc.core.links import Message
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.relay import Relay, RelayOptions


async def main(node_id: str, peer_id: str, peer_address: str) -> None:
    """Prints its port, is linked with the peer, and serves until its standard input ends."""

    def send_back(sender: str, messages: list[Message]) -> None:
        for message in messages:
            relay.send(sender, message)

    relay = Relay(RelayOptions(node_id), send_back, lambda _, __: None, relay_pb2.DescribeResponse, Metrics())
    print(await relay.start(), flush=True)
    relay.see({peer_id: NodeInfo(peer_id, "", peer_address)})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await relay.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
