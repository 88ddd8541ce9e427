"""The cluster over etcd, by a thin client of its own (docs: `client.py`)."""

from chatgrpc.adapters.etcd.client import EtcdSettings
from chatgrpc.adapters.etcd.cluster import EtcdCluster
from chatgrpc.adapters.etcd.reading import read_cluster

__all__ = ["EtcdCluster", "EtcdSettings", "read_cluster"]
