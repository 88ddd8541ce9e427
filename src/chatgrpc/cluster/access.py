"""How to reach etcd and other nodes, as the settings of a cluster say: secrets unwrapped, certificates read."""

from pathlib import Path

from chatgrpc.adapters.etcd import EtcdSettings
from chatgrpc.config import ClusterSettings, StartError
from chatgrpc.relay import Tls


def etcd_settings(cluster: ClusterSettings) -> EtcdSettings:
    """How to reach etcd.

    Raises:
        StartError: a file cannot be read.
    """
    return EtcdSettings(
        endpoints=cluster.etcd_endpoints,
        prefix=cluster.etcd_prefix,
        lease_ttl_s=cluster.lease_ttl_s,
        username=cluster.etcd_username or "",
        password="" if cluster.etcd_password is None else cluster.etcd_password.get_secret_value(),
        ca_pem=_read(cluster.etcd_ca_file),
        cert_pem=_read(cluster.etcd_cert_file),
        key_pem=_read(cluster.etcd_key_file),
    )


def relay_tls(cluster: ClusterSettings) -> Tls | None:
    """What nodes show each other; None if they have no TLS.

    Raises:
        StartError: a file cannot be read.
    """
    ca_pem, cert_pem, key_pem = (_read(file) for file in (cluster.tls_ca_file, cluster.tls_cert_file, cluster.tls_key_file))
    if ca_pem is None or cert_pem is None or key_pem is None:
        return None
    return Tls(ca_pem, cert_pem, key_pem)


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"Cannot read {file}: {error.strerror}.") from error
