"""Real Redis, etcd and Cassandra for tests and for a cluster on one machine, on free ports.

Their programs come from package registries. Nothing is installed on the machine and nothing needs root: programs, data and logs
stand in `tests/.services/`, which git ignores. Every process that is started here ends with the one that started it; what a
crash may leave behind, the next start ends (`process.py`).
"""

from tests.support.services.cassandra import CassandraCluster, CassandraNode
from tests.support.services.etcd import EtcdCluster, EtcdMember
from tests.support.services.folder import ServiceError
from tests.support.services.redis import RedisServer

__all__ = ["CassandraCluster", "CassandraNode", "EtcdCluster", "EtcdMember", "RedisServer", "ServiceError"]
