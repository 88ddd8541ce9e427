"""How to reach etcd and other nodes, as the settings of a cluster say: secrets unwrapped, certificates read."""

import secrets
from pathlib import Path
from typing import Final

from chatgrpc.adapters.etcd import EtcdSettings
from chatgrpc.config import RELAY_SECRET_MIN, ClusterSettings, Settings
from chatgrpc.relay import Tls
from chatgrpc.secret_files import create_secret_file, read_secret_file
from chatgrpc.start_error import StartError

RELAY_SECRET_FILE: Final = "relay_secret"  # noqa: S105  the name of the file


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


def relay_secret(settings: Settings) -> bytes | None:
    """What nodes without TLS show each other that they know; None if they have TLS.

    Without `cluster.relay_secret` it stands in a file of the data folder, which the first node makes: nodes without TLS are on
    one machine, and those that are started as one user in one folder find each other without a word.

    Raises:
        StartError: the file can be neither read nor made, or others may read it.
    """
    cluster = settings.cluster
    if cluster.tls_ca_file is not None:
        return None
    if cluster.relay_secret is not None:
        return cluster.relay_secret.get_secret_value().encode()
    path = settings.data_dir / RELAY_SECRET_FILE
    try:
        if not path.exists():
            create_secret_file(path, secrets.token_hex(32).encode())
        secret = read_secret_file(path)
    except OSError as error:
        reason = error.strerror or error
        raise StartError(f"{path}: {reason}. Or set cluster.relay_secret, the same for all nodes") from error
    if len(secret) < RELAY_SECRET_MIN:
        raise StartError(f"{path} holds no secret; remove it while no node runs, and a new one is made")
    return secret


def known_relay_secret(settings: Settings) -> bytes | None:
    """The same for whoever only looks at a cluster: none is made, and what cannot be read is None."""
    try:
        if settings.cluster.relay_secret is None and not (settings.data_dir / RELAY_SECRET_FILE).exists():
            return None
        return relay_secret(settings)
    except (OSError, StartError):
        return None


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"Cannot read {file}: {error.strerror}.") from error
