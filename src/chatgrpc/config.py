"""Settings: what an operator can choose, where a choice may stand, and which choices are refused.

A setting has one name, `server.port`, and three spellings that follow from it: the key `port` under `[server]` of a TOML
file, `CHATGRPC_SERVER__PORT` in the environment, and a flag, `--port` (flags of the group `server` leave the group out;
`log.level` is `--log-level`). Flags win over the environment, the environment over the file, the file over the defaults.

`Settings` itself is pure: built in code it holds what the code says and its defaults. `load_settings` reads the world.
"""

import os
import tomllib
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from chatgrpc.addresses import is_loopback, is_wildcard, split_address, split_addresses
from chatgrpc.auth_settings import DEV_AUDIENCE, DEV_ISSUER, AuthSettings, auth_problems
from chatgrpc.limit_settings import LimitSettings
from chatgrpc.rate_settings import RateSettings
from chatgrpc.settings_group import SettingsGroup
from chatgrpc.start_error import StartError

__all__ = [
    "CONFIG_FILE_ENV",
    "DEV_AUDIENCE",
    "DEV_ISSUER",
    "ENV_PREFIX",
    "PORT_MAX",
    "RELAY_SECRET_MIN",
    "AuthSettings",
    "ClusterSettings",
    "ConfigError",
    "LimitSettings",
    "LoadedSettings",
    "LogSettings",
    "Port",
    "RateSettings",
    "ServerSettings",
    "SessionSettings",
    "Settings",
    "StartError",
    "env_name",
    "environment_of",
    "flag_name",
    "is_loopback",
    "is_wildcard",
    "load_settings",
    "setting_fields",
    "value_of",
]

ENV_PREFIX = "CHATGRPC_"
CONFIG_FILE_ENV = "CHATGRPC_CONFIG"

PORT_MAX = 65_535
RELAY_SECRET_MIN = 16
Port = Annotated[int, Field(ge=0, le=PORT_MAX)]


class ConfigError(StartError):
    """A setting is unknown, has a value it cannot have, or does not go with another one."""


class ServerSettings(SettingsGroup):
    """The public port and the life of the process."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: Port = Field(default=15_551, description="Port to listen on; 0 takes any free one.")
    edge: Literal["auto", "native", "grpcio"] = Field(
        default="grpcio",
        description="What serves the devices' streams; auto: the native edge (package chatgrpc-edge) where it is installed.",
    )
    tls_cert_file: Path | None = Field(default=None, description="Certificate chain (PEM) for TLS.")
    tls_key_file: Path | None = Field(default=None, description="Private key (PEM) of the certificate.")
    allow_dev_auth: bool = Field(default=False, description="Accept development tokens on an address others can reach.")
    insecure: bool = Field(
        default=False,
        description="Take an issuer's tokens without TLS on an address others can reach: a proxy in front ends TLS.",
    )
    metrics_host: str = Field(default="127.0.0.1", min_length=1, description="Address of the Prometheus endpoint.")
    metrics_port: Port = Field(default=9464, description="Port of the Prometheus endpoint; 0 turns it off.")
    drain_timeout_s: float = Field(
        default=20.0, ge=0, description="Longest time a stopping node spends to send devices elsewhere."
    )
    workers: int = Field(
        default=1, ge=1, le=256, description="Processes that serve on the port, each a node of its own; needs a cluster."
    )
    reuse_port: bool = Field(
        default=False, description="Let other nodes of the cluster listen on the same port; workers do so by themselves."
    )


class SessionSettings(SettingsGroup):
    """The devices' streams."""

    heartbeat_interval_s: float = Field(default=30.0, gt=0, description="A quiet stream carries a heartbeat this often.")
    hello_timeout_s: float = Field(default=10.0, gt=0, description="Longest time from a stream's opening to its Hello.")
    slow_reader_timeout_s: float = Field(
        default=30.0, gt=0, description="A stream whose device reads nothing for as long is ended; it resumes from the log."
    )
    ack_delay_ms: int = Field(
        default=100, ge=0, le=5_000, description="Devices may gather acknowledgements so long; ticks come as much later."
    )
    max_connection_age_s: float = Field(default=86_400.0, gt=0, description="A stream older than this is asked to reconnect.")


class ClusterSettings(SettingsGroup):
    """The other nodes, and the services that nodes of a cluster share."""

    etcd: str | None = Field(
        default=None, description="Members of etcd, host:port,…; setting it makes this a node of a cluster."
    )
    redis: str = Field(
        default="redis://127.0.0.1:6379/0", repr=False, description="Redis, which knows the node that each device is at."
    )
    cassandra: str = Field(default="127.0.0.1:9042", description="Some nodes of Cassandra, which holds all data, host:port,….")
    name: str = Field(
        default="chatgrpc", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Tells clusters that share an etcd or a Redis apart."
    )
    keyspace: str = Field(
        default="chatgrpc", pattern=r"^[a-z][a-z0-9_]{0,47}$", description="The cluster's keyspace in Cassandra."
    )
    replication_factor: int = Field(default=3, ge=1, le=9, description="Copies of all data, when the keyspace is made.")
    lease_ttl_s: int = Field(default=5, ge=2, le=60, description="Time after which others take what a node owned that crashed.")

    relay_host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on for other nodes.")
    relay_port: Port = Field(default=0, description="Port to listen on for other nodes; 0 takes any free one.")
    relay_secret: SecretStr | None = Field(
        default=None,
        description="What nodes without TLS know of each other; without it, a file in data_dir. Best set in the environment.",
    )
    relay_accepts_unproven: bool = Field(
        default=False, description="Link with nodes of the version before the secret too; only while they are replaced."
    )
    relay_advertise: str | None = Field(
        default=None, description="Where other nodes dial this one, host:port; without it, where it listens for them."
    )
    advertise: str | None = Field(
        default=None, description="Where devices dial this node, host:port; without it, server.host and its port."
    )
    tls_ca_file: Path | None = Field(default=None, description="Certificates (PEM) that other nodes' must be signed by.")
    tls_cert_file: Path | None = Field(default=None, description="Certificate chain (PEM) that is shown to other nodes.")
    tls_key_file: Path | None = Field(default=None, description="Private key (PEM) of that certificate.")

    etcd_username: str | None = Field(default=None, min_length=1, description="User of etcd.")
    etcd_password: SecretStr | None = Field(default=None, description="Password of that user; best set in the environment.")
    etcd_ca_file: Path | None = Field(default=None, description="Certificates (PEM) to trust etcd by; turns on TLS.")
    etcd_cert_file: Path | None = Field(default=None, description="Certificate (PEM) to show to an etcd that wants one.")
    etcd_key_file: Path | None = Field(default=None, description="Private key (PEM) of that certificate.")

    cassandra_username: str | None = Field(default=None, min_length=1, description="User of Cassandra.")
    cassandra_password: SecretStr | None = Field(
        default=None, description="Password of that user; best set in the environment."
    )
    cassandra_ca_file: Path | None = Field(default=None, description="Certificates (PEM) to trust Cassandra by; turns on TLS.")

    @field_validator("etcd")
    @classmethod
    def _are_addresses_if_any(cls, value: str | None) -> str | None:
        if not value:
            return None
        split_addresses(value)
        return value

    @field_validator("cassandra")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        split_addresses(value)
        return value

    @field_validator("relay_advertise", "advertise")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("relay_secret")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < RELAY_SECRET_MIN:
            raise ValueError(f"must be {RELAY_SECRET_MIN} characters or more, such as `openssl rand -hex 32` prints")
        return value

    @field_validator("redis")
    @classmethod
    def _is_redis_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("must be an address such as redis://127.0.0.1:6379/0, or rediss:// for TLS")
        return value

    @property
    def enabled(self) -> bool:
        """Whether this is a node of a cluster, and not a server by itself."""
        return self.etcd is not None

    @property
    def etcd_endpoints(self) -> list[str]:
        """`host:port` of members of etcd; none without a cluster."""
        return [] if self.etcd is None else [part.strip() for part in self.etcd.split(",")]

    @property
    def etcd_prefix(self) -> str:
        """What the cluster's keys in etcd begin with."""
        return f"{self.name}/"

    @property
    def cassandra_hosts(self) -> list[tuple[str, int]]:
        """Host and port of some nodes of Cassandra."""
        return split_addresses(self.cassandra)


class LogSettings(SettingsGroup):
    """The log, written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level that is written.")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="One JSON object a line, or text for people; auto: text on a terminal."
    )


class Settings(BaseSettings):
    """Everything an operator can choose. Immutable; built in code it reads neither the environment nor a file."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    data_dir: Path = Field(default=Path("data"), description="Folder that holds all the node keeps.")
    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    session: SessionSettings = SessionSettings()
    limits: LimitSettings = LimitSettings()
    rates: RateSettings = RateSettings()
    cluster: ClusterSettings = ClusterSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments: `load_settings` reads the other sources itself, to know where each value came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        problems = [
            *_tls_problems(self.server),
            *auth_problems(self.auth),
            *_exposure_problems(self),
            *_cluster_problems(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def token_issuer(self) -> str:
        """The `iss` that tokens must carry, whatever the mode."""
        return DEV_ISSUER if self.auth.issuer is None else self.auth.issuer

    @property
    def token_audience(self) -> str:
        """The `aud` that tokens must carry, whatever the mode."""
        return self.auth.audience


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and where each of them was found."""

    settings: Settings
    origins: Mapping[str, str]
    """Of each setting that is not at its default: the flag, the environment variable or the file it came from."""


def load_settings(flags: Mapping[str, object], config_file: Path | None = None) -> LoadedSettings:
    """Reads flags, environment and file, in this order of precedence.

    Args:
        flags: values by name of setting (`server.port`); None stands for a flag that was not given.
        config_file: the TOML file; without it the one that `CHATGRPC_CONFIG` names, if any.

    Raises:
        ConfigError: with one line for each thing that is wrong, each naming the setting and where it stands.
    """
    file = config_file or (Path(os.environ[CONFIG_FILE_ENV]) if os.environ.get(CONFIG_FILE_ENV) else None)
    from_flags = {key: value for key, value in flags.items() if value is not None}
    from_env = _read_environment()
    from_file = {} if file is None else _read_file(file)
    values: ChainMap[str, object] = ChainMap(from_flags, from_env, from_file)
    origins = {
        **{key: str(file) for key in from_file},
        **{key: env_name(key) for key in from_env},
        **{key: flag_name(key) for key in from_flags},
    }

    unknown = [_describe_unknown(key, origins[key]) for key in sorted(values.keys() - dict(setting_fields()).keys())]
    if unknown:
        raise ConfigError("\n".join(unknown))
    try:
        return LoadedSettings(Settings.model_validate(_nested(values)), origins)
    except ValidationError as error:
        # The cause would show the values, and one of them may be a secret.
        raise ConfigError("\n".join(_describe_invalid(error, origins))) from None


def setting_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting's name (`server.port`) and declaration, in the order of declaration."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup):
            yield from ((f"{name}.{key}", inner) for key, inner in field.annotation.model_fields.items())
        else:
            yield name, field


def value_of(settings: Settings, key: str) -> object:
    """The value of the setting named `key`."""
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def addresses_of(settings: Settings) -> list[str]:
    """The values that are addresses, which may hold secrets."""
    values = [value_of(settings, key) for key, _ in setting_fields()]
    return [value for value in values if isinstance(value, str) and "://" in value]


def flag_name(key: str) -> str:
    """The flag of a setting: `server.port` is `--port`, `log.level` is `--log-level`."""
    return "--" + key.removeprefix("server.").replace(".", "-").replace("_", "-")


def env_name(key: str) -> str:
    """The environment variable of a setting: `server.port` is `CHATGRPC_SERVER__PORT`."""
    return ENV_PREFIX + key.replace(".", "__").upper()


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which `load_settings`, without flags and a file, reads the same settings. It holds their secrets."""
    return {env_name(key): text for key, _ in setting_fields() if (text := _as_text(value_of(settings, key))) is not None}


def _as_text(value: object) -> str | None:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return None if value is None else str(value)


def _tls_problems(server: ServerSettings) -> Iterator[str]:
    if (server.tls_cert_file is None) != (server.tls_key_file is None):
        missing = "server.tls_key_file" if server.tls_key_file is None else "server.tls_cert_file"
        yield f"{missing} is missing: TLS needs both a certificate and its key"


def _exposure_problems(settings: Settings) -> Iterator[str]:
    """What others could do who can reach the server's address."""
    auth, server = settings.auth, settings.server
    if is_loopback(server.host):
        return
    if auth.mode == "dev" and not server.allow_dev_auth:
        yield (
            f"auth.mode is dev and server.host is {server.host}: anyone with the development key could be anyone. "
            "Set auth.mode to jwks, or accept it with --allow-dev-auth"
        )
    if auth.mode == "jwks" and server.tls_cert_file is None and not server.insecure:
        yield (
            f"server.host is {server.host}, and there is no TLS: whoever is on the way could read tokens and messages. "
            "Set server.tls_cert_file and server.tls_key_file; if a proxy in front ends TLS, say so with --insecure"
        )


def _cluster_problems(settings: Settings) -> Iterator[str]:
    server, cluster = settings.server, settings.cluster
    if not cluster.enabled:
        if server.workers > 1:
            yield (
                f"server.workers is {server.workers}, but there is no cluster: one process keeps all its data in one file. "
                "Set cluster.etcd, or leave server.workers at 1"
            )
        if server.reuse_port:
            yield "server.reuse_port is set, but only nodes of a cluster can share a port; set cluster.etcd"
        for key, field in ClusterSettings.model_fields.items():
            if getattr(cluster, key) != field.default:
                yield f"cluster.{key} is set, but cluster.etcd is not, without which there is no cluster; set cluster.etcd"
        return
    yield from _incomplete(cluster, "TLS between nodes", "tls_ca_file", "tls_cert_file", "tls_key_file")
    yield from _incomplete(cluster, "etcd's password", "etcd_username", "etcd_password")
    yield from _incomplete(cluster, "a certificate for etcd", "etcd_cert_file", "etcd_key_file")
    if cluster.etcd_cert_file is not None and cluster.etcd_ca_file is None:
        yield "cluster.etcd_ca_file is missing: a certificate is shown to etcd over TLS only"
    yield from _incomplete(cluster, "Cassandra's password", "cassandra_username", "cassandra_password")
    if cluster.tls_ca_file is None and not is_loopback(cluster.relay_host):
        yield (
            f"cluster.relay_host is {cluster.relay_host}, and nodes have no TLS: who reaches it could write as anyone. "
            "Set cluster.tls_ca_file, cluster.tls_cert_file and cluster.tls_key_file"
        )
    if is_wildcard(cluster.relay_host) and cluster.relay_advertise is None:
        yield f"cluster.relay_advertise is missing: other nodes cannot dial {cluster.relay_host}"
    if is_wildcard(server.host) and cluster.advertise is None:
        yield f"cluster.advertise is missing: devices cannot dial {server.host}"
    if server.workers > 1 and cluster.relay_advertise is not None and cluster.relay_port == 0:
        yield "cluster.relay_port is missing: of several workers, each is dialled at cluster.relay_advertise plus its number"
    advertised = 0 if cluster.relay_advertise is None else split_address(cluster.relay_advertise)[1]
    counted = {"server.metrics_port": server.metrics_port, "cluster.relay_port": cluster.relay_port}
    for key, port in (counted | {"cluster.relay_advertise": advertised}).items():
        if port and port + server.workers - 1 > PORT_MAX:
            yield f"{key}: the ports of {server.workers} workers count up from {port}, and would pass {PORT_MAX}"


def _incomplete(cluster: ClusterSettings, what: str, *keys: str) -> Iterator[str]:
    missing = [key for key in keys if getattr(cluster, key) is None]
    if missing and len(missing) < len(keys):
        names = ", ".join(f"cluster.{key}" for key in keys)
        yield f"{', '.join(f'cluster.{key}' for key in missing)} is missing: {what} needs all of {names}"


def _read_environment() -> dict[str, object]:
    """Settings from the environment, and names that look like settings: with `__`, or close to the name of one.

    Other names that start with `CHATGRPC_` are left alone: Kubernetes sets `CHATGRPC_SERVICE_HOST` and the like for a
    service called chatgrpc.
    """
    try:
        found = _flat(EnvSettingsSource(Settings)())
    except SettingsError as error:
        raise ConfigError(f"environment: {error}; a whole group is written as a JSON object") from None
    groups = {name.upper() for name in Settings.model_fields}
    for name, value in os.environ.items():
        rest = name.removeprefix(ENV_PREFIX)
        if name in (rest, CONFIG_FILE_ENV) or rest.split("__")[0] in groups:
            continue
        if "__" in rest or get_close_matches(rest, groups, cutoff=0.8):
            found[rest.lower().replace("__", ".")] = value
    return found


def _read_file(file: Path) -> dict[str, object]:
    try:
        if not S_ISREG(file.stat().st_mode):  # `is_file` says no also of what may not be looked at, from Python 3.14 on
            raise ConfigError(f"{file}: not a file")
        return _flat(TomlConfigSettingsSource(Settings, file)())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _flat(nested: Mapping[str, Any]) -> dict[str, object]:
    """`{"server": {"port": 1}}` as `{"server.port": 1}`. Deeper levels stay: no setting is called so."""
    flat: dict[str, object] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        group, dot, name = key.partition(".")
        if dot:
            nested.setdefault(group, {})[name] = value
        else:
            nested[key] = value
    return nested


def _describe_unknown(key: str, origin: str) -> str:
    if key in Settings.model_fields:
        return f"{origin}: {key} is a group of settings, not a setting"
    known = [name for name, _ in setting_fields()]
    by_name = {name.rpartition(".")[2]: name for name in known}
    close = get_close_matches(key, known, n=1)
    close += [by_name[name] for name in get_close_matches(key.rpartition(".")[2], by_name, n=1)]
    hint = f"; did you mean {close[0]}?" if close else "; `chatgrpc config` shows all settings"
    return f"{origin}: unknown setting {key}{hint}"


def _describe_invalid(error: ValidationError, origins: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in problem["loc"][:2])
        message = problem["msg"].removeprefix("Value error, ")
        if key:
            yield f"{origins.get(key, 'default')}: {key}: {message[:1].lower()}{message[1:]}"
        else:
            yield message
