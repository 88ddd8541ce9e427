"""A look at the cluster from outside of it."""

from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError, EtcdSettings
from chatgrpc.adapters.etcd.view import KeySpace, LiveView
from chatgrpc.ports.cluster import ClusterUnavailableError, ClusterView


async def read_cluster(settings: EtcdSettings) -> ClusterView:
    """The nodes and the owners of all shards as they stand at one revision of etcd; joins nothing and changes nothing.

    Raises:
        ClusterUnavailableError: etcd does not answer, or does not let us read.
    """
    client, keys = EtcdClient(settings), KeySpace(settings.prefix)
    view = LiveView(keys)
    try:
        read = await client.range(keys.prefix, keys.end)
        view.reset(read.kvs)
    except EtcdError as error:
        raise ClusterUnavailableError(str(error)) from error
    finally:
        await client.close()
    return view.snapshot()
