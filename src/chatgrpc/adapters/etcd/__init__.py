"""The cluster over etcd, by a thin client of its own (docs: `client.py`)."""

from chatgrpc.adapters.etcd.client import EtcdSettings
from chatgrpc.adapters.etcd.cluster import EtcdCluster

__all__ = ["EtcdCluster", "EtcdSettings"]
