"""NodeService: where devices may connect to."""

import random

from chatgrpc.ports.node_directory import NodeDirectory
from chatgrpc.v1 import node_service_pb2
from chatgrpc.v1.node_service_pb2 import ListNodesRequest, ListNodesResponse
from chatgrpc.v1.node_service_pb2_grpc import NodeServiceServicer


class NodeService(NodeServiceServicer):
    """Lists the nodes; for everyone (`interceptors.TOKENLESS_METHODS`), since it is asked before there is a session."""

    def __init__(self, directory: NodeDirectory, nodes_max: int) -> None:
        """Serves a directory.

        Args:
            directory: the live nodes.
            nodes_max: of more nodes than this, as many at random are told.
        """
        self._directory = directory
        self._nodes_max = nodes_max

    async def ListNodes(self, request: ListNodesRequest, context: object) -> ListNodesResponse:
        """Lists the live nodes."""
        nodes = self._directory.nodes()
        if len(nodes) > self._nodes_max:
            nodes = random.sample(nodes, self._nodes_max)
        return ListNodesResponse(
            nodes=[
                node_service_pb2.Node(node_id=node.node_id, address=node.address, draining=node.draining, streams=node.streams)
                for node in nodes
            ]
        )
