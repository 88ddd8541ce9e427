"""Ports in process memory, for tests, simulators and what need not outlive the process. No threads, no clock: deterministic."""

from chatgrpc.adapters.memory.cluster import MemoryCluster, MemoryCoordinator
from chatgrpc.adapters.memory.last_seen import MemoryLastSeen
from chatgrpc.adapters.memory.node_directory import SoleNode
from chatgrpc.adapters.memory.row_store import MemoryRowStore
from chatgrpc.adapters.memory.session_map import MemorySessionMap
from chatgrpc.adapters.memory.shared_looks import MemorySharedLooks
from chatgrpc.adapters.memory.store import MemoryStore

__all__ = [
    "MemoryCluster",
    "MemoryCoordinator",
    "MemoryLastSeen",
    "MemoryRowStore",
    "MemorySessionMap",
    "MemorySharedLooks",
    "MemoryStore",
    "SoleNode",
]
