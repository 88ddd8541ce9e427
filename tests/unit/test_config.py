"""Settings: where they come from, which win, and which are refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from chatgrpc.config import (
    AuthSettings,
    ClusterSettings,
    ConfigError,
    RateSettings,
    ServerSettings,
    Settings,
    env_name,
    environment_of,
    flag_name,
    is_loopback,
    load_settings,
    setting_fields,
    value_of,
)
from chatgrpc.core.limits import Limits, Rate
from chatgrpc.edge.node import limits_of


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CHATGRPC_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "chatgrpc.toml"
    path.write_text(text)
    return path


def refused(flags: dict[str, object] | None = None, file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_settings(flags or {}, file)
    return str(error.value).splitlines()


def test_the_defaults_start_on_a_fresh_machine() -> None:
    loaded = load_settings({})
    assert loaded.settings == Settings()
    assert loaded.origins == {}
    assert is_loopback(loaded.settings.server.host)
    assert loaded.settings.auth.mode == "dev"


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, 'data_dir = "f"\n[server]\nport = 1\nmetrics_port = 1\ndrain_timeout_s = 1\n[log]\nlevel = "error"')
    monkeypatch.setenv("CHATGRPC_SERVER__PORT", "2")
    monkeypatch.setenv("CHATGRPC_SERVER__METRICS_PORT", "2")
    monkeypatch.setenv("CHATGRPC_DATA_DIR", "e")
    loaded = load_settings({"server.port": "3", "server.host": None}, file)
    server = loaded.settings.server
    assert (server.port, server.metrics_port, server.drain_timeout_s, server.host) == (3, 2, 1.0, "127.0.0.1")
    assert loaded.settings.data_dir == Path("e")
    assert loaded.settings.log.level == "error"
    assert loaded.origins == {
        "server.port": "--port",
        "server.metrics_port": "CHATGRPC_SERVER__METRICS_PORT",
        "server.drain_timeout_s": str(file),
        "data_dir": "CHATGRPC_DATA_DIR",
        "log.level": str(file),
    }


def test_the_environment_can_name_the_file_and_a_flag_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPC_CONFIG", str(write(tmp_path, "[server]\nport = 1")))
    assert load_settings({}).settings.server.port == 1
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 2")
    assert load_settings({}, other).settings.server.port == 2


A_CLUSTER: dict[str, object] = {"cluster.etcd": "127.0.0.1:2379"}
TLS_BETWEEN_NODES: dict[str, object] = {"cluster.tls_ca_file": "c", "cluster.tls_cert_file": "c", "cluster.tls_key_file": "k"}
ETCD_PASSWORD: dict[str, object] = {"cluster.etcd_username": "u", "cluster.etcd_password": "p"}
ETCD_TLS: dict[str, object] = {"cluster.etcd_ca_file": "a", "cluster.etcd_cert_file": "c", "cluster.etcd_key_file": "k"}
CASSANDRA_PASSWORD: dict[str, object] = {"cluster.cassandra_username": "u", "cluster.cassandra_password": "p"}


def _other_value(key: str, value: object) -> str:
    if key in ("log.level", "log.format", "auth.mode", "server.edge"):
        return {"log.level": "debug", "log.format": "json", "auth.mode": "dev", "server.edge": "auto"}[key]
    if key in ("cluster.etcd", "cluster.cassandra"):
        return "10.0.0.7:1,[fd00::7]:2"
    if key in ("cluster.advertise", "cluster.relay_advertise"):
        return "node7.example:7"
    if key == "cluster.redis":
        return "rediss://redis.example:7/1"
    if key == "cluster.relay_secret":
        return "sixteen letters or more"
    if key == "auth.user_id_rule":
        return "escaped"
    if key in ("auth.leeway_s", "auth.token_age_max_s"):  # numbers that have no default of their own
        return "7"
    if isinstance(value, bool):
        return "true"
    return "7" if isinstance(value, int | float) else "seven"


@pytest.mark.parametrize("key", [key for key, _ in setting_fields()])
def test_every_setting_can_be_set_in_each_place(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _other_value(key, value_of(Settings(), key))
    # What goes together is set together.
    company: dict[str, object] = {}
    if key.startswith("server.tls_"):
        company = {"server.tls_cert_file": "c", "server.tls_key_file": "k"}
    if key.startswith("auth.") and key not in ("auth.mode", "auth.jwks_url"):
        company = {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_file": "f"}
    if key == "auth.jwks_url":
        company, text = {"auth.mode": "jwks", "auth.issuer": "i"}, "https://issuer.example/keys"
    if key.startswith("cluster.") or key in ("server.workers", "server.reuse_port"):
        together = (TLS_BETWEEN_NODES, ETCD_PASSWORD, ETCD_TLS, CASSANDRA_PASSWORD)
        company = A_CLUSTER | next((group for group in together if key in group), {})
    company.pop(key, None)
    if key in ("server.host", "cluster.relay_host"):
        text = "127.0.0.7"

    by_flag = load_settings(company | {key: text})
    monkeypatch.setenv(env_name(key), text)
    by_env = load_settings(company)
    monkeypatch.delenv(env_name(key))
    group, _, name = key.rpartition(".")
    file = write(tmp_path, (f"[{group}]\n" if group else "") + f"{name} = {json.dumps(text)}")
    by_file = load_settings(company, file)

    assert by_flag.settings == by_env.settings == by_file.settings
    value = value_of(by_flag.settings, key)
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    assert str(value).lower().removesuffix(".0") == text
    assert [loaded.origins[key] for loaded in (by_flag, by_env, by_file)] == [flag_name(key), env_name(key), str(file)]


def test_flags_have_names_a_person_can_guess() -> None:
    flags = [flag_name(key) for key, _ in setting_fields()]
    assert len(set(flags)) == len(flags)
    assert {"--host", "--port", "--data-dir", "--allow-dev-auth", "--metrics-port", "--log-level", "--auth-mode"} <= {*flags}


def test_unknown_keys_of_a_file_are_named_with_a_suggestion(tmp_path: Path) -> None:
    file = write(tmp_path, "prot = 1\n[server]\nprot = 1\n[sever]\nport = 1\n[log]\njwks_url = 1\n[zzz]\nqqq.a = 1")
    assert refused(file=file) == [
        f"{file}: unknown setting log.jwks_url; did you mean auth.jwks_url?",
        f"{file}: unknown setting prot; did you mean server.port?",
        f"{file}: unknown setting server.prot; did you mean server.port?",
        f"{file}: unknown setting sever.port; did you mean server.port?",
        f"{file}: unknown setting zzz.qqq; `chatgrpc config` shows all settings",
    ]


def test_a_group_is_not_a_setting(tmp_path: Path) -> None:
    file = write(tmp_path, "server = 5\n[log.level]\nx = 1")
    assert refused(file=file) == [f"{file}: server is a group of settings, not a setting"]
    file = write(tmp_path, "[log.level]\nx = 1")
    assert refused(file=file)[0].startswith(f"{file}: log.level: input should be 'debug'")


def test_unknown_names_in_the_environment_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPC_SERVER__PROT", "1")
    monkeypatch.setenv("CHATGRPC_SEVER__PORT", "1")
    monkeypatch.setenv("CHATGRPC_DATADIR", "1")
    assert refused() == [
        "CHATGRPC_DATADIR: unknown setting datadir; did you mean data_dir?",
        "CHATGRPC_SERVER__PROT: unknown setting server.prot; did you mean server.port?",
        "CHATGRPC_SEVER__PORT: unknown setting sever.port; did you mean server.port?",
    ]


def test_names_that_are_not_ours_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHATGRPC_SERVICE_HOST", "CHATGRPC_PORT_15551_TCP", "CHATGRPC_TOKEN"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:15551")
    assert load_settings({}).settings == Settings()


def test_a_group_in_the_environment_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPC_SERVER", "localhost:15551")
    assert '"server"' in refused()[0]
    assert "JSON" in refused()[0]
    monkeypatch.setenv("CHATGRPC_SERVER", '{"port": 9}')
    assert load_settings({}).settings.server.port == 9


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refused(file=tmp_path / "none.toml") == [f"{tmp_path / 'none.toml'}: No such file or directory"]
    assert refused(file=tmp_path) == [f"{tmp_path}: not a file"]
    (line,) = refused(file=write(tmp_path, "port = = 1"))
    assert line.startswith(f"{tmp_path / 'chatgrpc.toml'}: not TOML: ")
    path = tmp_path / "chatgrpc.toml"
    path.write_bytes(b"\xff\xfe")
    assert refused(file=path)[0].startswith(f"{path}: not TOML: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.port", "65536"),
        ("server.port", "-1"),
        ("server.port", "http"),
        ("server.host", ""),
        ("server.drain_timeout_s", "-1"),
        ("server.drain_timeout_s", "inf"),
        ("session.heartbeat_interval_s", "nan"),
        ("session.heartbeat_interval_s", "0"),
        ("rates.joins_burst", "0"),
        ("rates.joins_interval_s", "0"),
        ("auth.mode", "none"),
        ("auth.leeway_s", "601"),
        ("log.level", "verbose"),
        ("server.allow_dev_auth", "perhaps"),
    ],
)
def test_a_value_it_cannot_have_is_refused_with_its_origin(key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env_name(key), value)
    (line,) = refused()
    assert line.startswith((f"{env_name(key)}: {key}: input should ", f"{env_name(key)}: {key}: string"))


def test_all_that_is_wrong_is_said_at_once_and_values_are_not_shown() -> None:
    lines = refused({"server.port": "hunter2", "log.level": "hunter2"})
    assert len(lines) == 2
    assert not [line for line in lines if "hunter2" in line]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_only_this_machine_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)
    assert Settings(server=ServerSettings(host=host)).auth.mode == "dev"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "chat.example", "localhost.example"])
def test_development_tokens_are_refused_on_an_address_others_reach(host: str) -> None:
    assert "--allow-dev-auth" in refused({"server.host": host})[0]
    assert load_settings({"server.host": host, "server.allow_dev_auth": True}).settings.server.host == host
    jwks = {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_file": "f"}
    tls = {"server.tls_cert_file": "c", "server.tls_key_file": "k"}
    assert load_settings({"server.host": host, **jwks, **tls}).settings.auth.mode == "jwks"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "chat.example", "localhost.example"])
def test_an_issuers_tokens_do_not_go_in_clear_unless_that_is_accepted(host: str) -> None:
    jwks = {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_file": "f"}
    (line,) = refused({"server.host": host, **jwks})
    assert "server.tls_cert_file" in line
    assert "--insecure" in line
    assert load_settings({"server.host": host, **jwks, "server.insecure": True}).settings.server.insecure
    assert load_settings({"server.host": "127.0.0.1", **jwks}).settings.auth.mode == "jwks"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"server.tls_cert_file": "c"}, "server.tls_key_file is missing"),
        ({"server.tls_key_file": "k"}, "server.tls_cert_file is missing"),
        ({"auth.jwks_url": "https://i.example/k"}, "auth.jwks_url is set, but auth.mode is dev"),
        ({"auth.jwks_file": "f"}, "auth.jwks_file is set, but auth.mode is dev"),
        ({"auth.issuer": "i"}, "auth.issuer is set, but auth.mode is dev"),
        ({"auth.audience": "a"}, "auth.audience is set, but auth.mode is dev"),
        ({"auth.jwks_stale_max_s": 1.0}, "auth.jwks_stale_max_s is set, but auth.mode is dev"),
        ({"auth.mode": "jwks", "auth.jwks_file": "f"}, "auth.issuer is missing"),
        ({"auth.mode": "jwks", "auth.issuer": "i"}, "needs auth.jwks_file or auth.jwks_url"),
        (
            {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_file": "f", "auth.jwks_url": "https://i.example/k"},
            "and not both",
        ),
        ({"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "http://i.example/k"}, "must start with https"),
        ({"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "i.example/k"}, "is not an address"),
        ({"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "https://u:p#w@i.example/k"}, "is not an address"),
        *(
            ({f"auth.{name}": value}, f"auth.{name} is set, but auth.mode is dev")
            for name, value in {
                "token_age_max_s": "60",
                "token_type": "at+jwt",
                "authorized_parties": "app",
                "user_id_claim": "email",
                "user_id_rule": "hashed",
                "device_claim": "device",
            }.items()
        ),
        (
            {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_file": "f", "auth.authorized_parties": " , "},
            "auth.authorized_parties names nobody",
        ),
        ({"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "https://[::1/k"}, "is not an address"),
        ({"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "file:///etc/k"}, "is not an address"),
        ({"server.workers": "2"}, "server.workers is 2, but there is no cluster"),
        ({"server.reuse_port": "true"}, "server.reuse_port is set, but only nodes of a cluster"),
        ({"cluster.name": "other"}, "cluster.name is set, but cluster.etcd is not"),
        ({"cluster.etcd": "", "cluster.redis": "redis://r:1"}, "cluster.redis is set, but cluster.etcd is not"),
        (A_CLUSTER | {"cluster.tls_ca_file": "c"}, "cluster.tls_cert_file, cluster.tls_key_file is missing: TLS between nodes"),
        (A_CLUSTER | {"cluster.relay_secret": "fifteen letters"}, "cluster.relay_secret: must be 16 characters or more"),
        (A_CLUSTER | {"cluster.etcd_username": "u"}, "cluster.etcd_password is missing: etcd's password needs all of"),
        (A_CLUSTER | {"cluster.etcd_password": "p"}, "cluster.etcd_username is missing: etcd's password needs all of"),
        (A_CLUSTER | {"cluster.etcd_ca_file": "a", "cluster.etcd_cert_file": "c"}, "cluster.etcd_key_file is missing"),
        (
            A_CLUSTER | {"cluster.etcd_cert_file": "c", "cluster.etcd_key_file": "k"},
            "cluster.etcd_ca_file is missing: a certificate is shown",
        ),
        (A_CLUSTER | {"cluster.cassandra_password": "p"}, "cluster.cassandra_username is missing"),
        (A_CLUSTER | {"cluster.relay_host": "10.0.0.7"}, "and nodes have no TLS"),
        (A_CLUSTER | TLS_BETWEEN_NODES | {"cluster.relay_host": "0.0.0.0"}, "cluster.relay_advertise is missing"),
        (A_CLUSTER | {"server.host": "::", "server.allow_dev_auth": "true"}, "cluster.advertise is missing: devices cannot"),
        (A_CLUSTER | {"server.workers": "2", "cluster.relay_advertise": "n:7"}, "cluster.relay_port is missing"),
        (A_CLUSTER | {"server.workers": "2", "server.metrics_port": "65535"}, "server.metrics_port: the ports of 2 workers"),
        (A_CLUSTER | {"server.workers": "9", "cluster.relay_port": "65530"}, "cluster.relay_port: the ports of 9 workers"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(flags: dict[str, object], words: str) -> None:
    (line,) = refused(flags)
    assert words in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster.etcd", "etcd.example"),
        ("cluster.etcd", "etcd.example:2379,"),
        ("cluster.etcd", "http://etcd.example:2379"),
        ("cluster.etcd", "fd00::7:2379"),
        ("cluster.cassandra", ""),
        ("cluster.cassandra", "10.0.0.7:70000"),
        ("cluster.advertise", "chat.example:0"),
        ("cluster.relay_advertise", "a:1,b:2"),
        ("cluster.redis", "127.0.0.1:6379"),
        ("cluster.redis", "redis://"),
        ("cluster.redis", "redis://r:port"),
        ("cluster.name", "a/b"),
        ("cluster.keyspace", "Chat"),
        ("cluster.keyspace", "chat;drop"),
        ("cluster.lease_ttl_s", "1"),
        ("cluster.lease_ttl_s", "2.5"),
        ("cluster.replication_factor", "0"),
        ("server.workers", "0"),
    ],
)
def test_a_cluster_is_not_described_so(key: str, value: str) -> None:
    lines = refused(A_CLUSTER | {key: value})
    assert lines[0].startswith(f"{flag_name(key)}: {key}: ")
    assert len(lines) == 1


def test_a_server_is_alone_until_it_is_told_of_etcd() -> None:
    alone, told_of_none = load_settings({}).settings.cluster, load_settings({"cluster.etcd": ""}).settings.cluster
    assert alone == told_of_none
    assert not alone.enabled
    assert alone.etcd_endpoints == []


def test_addresses_of_a_cluster_are_taken_apart() -> None:
    cluster = ClusterSettings(etcd="10.0.0.7:1, [fd00::7]:2", cassandra="c.example:3,[::1]:4", name="blue")
    assert cluster.enabled
    assert cluster.etcd_endpoints == ["10.0.0.7:1", "[fd00::7]:2"]
    assert cluster.cassandra_hosts == [("c.example", 3), ("::1", 4)]
    assert cluster.etcd_prefix == "blue/"


def test_nodes_meet_on_other_addresses_with_tls_only() -> None:
    tls = {**A_CLUSTER, **TLS_BETWEEN_NODES, "cluster.relay_host": "0.0.0.0", "cluster.relay_advertise": "10.0.0.7:7000"}
    assert load_settings(tls).settings.cluster.relay_host == "0.0.0.0"


def test_a_process_that_is_started_with_the_settings_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({**A_CLUSTER, **ETCD_PASSWORD, "server.workers": 3, "session.hello_timeout_s": "0.3"}).settings
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings({}).settings == settings


def test_secrets_are_in_no_words_about_the_settings() -> None:
    secrets = {
        "cluster.etcd_password": "hunter2",
        "cluster.cassandra_password": "hunter2",
        "cluster.redis": "redis://:hunter2@r",
    }
    users = {"cluster.etcd_username": "u", "cluster.cassandra_username": "u"}
    settings = load_settings({**A_CLUSTER, **secrets, **users}).settings
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)
    assert settings.cluster.etcd_password is not None
    assert settings.cluster.etcd_password.get_secret_value() == "hunter2"
    for key in (*secrets, "cluster.etcd"):
        lines = refused({**A_CLUSTER, key: "hunter2:x@y:0" if key.endswith(("redis", "etcd")) else ["hunter2"]})
        assert not [line for line in lines if "hunter2" in line]


def test_keys_may_come_over_plain_http_from_this_machine() -> None:
    flags = {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "http://127.0.0.1:1/k"}
    assert load_settings(flags).settings.auth.jwks_url == "http://127.0.0.1:1/k"


def test_settings_built_in_code_read_nothing_else_and_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPC_SERVER__PORT", "2")
    monkeypatch.setenv("CHATGRPC_CONFIG", "/nowhere")
    settings = Settings()
    assert settings.server.port == 15_551
    changes: list[tuple[Any, str]] = [(settings, "data_dir"), (settings.server, "port")]
    for owner, name in changes:
        with pytest.raises(ValidationError):
            setattr(owner, name, 1)
    assert settings.token_issuer == "chatgrpc-dev"
    assert settings.token_audience == "chatgrpc"
    jwks = Settings(auth=AuthSettings(mode="jwks", issuer="i", audience="a", jwks_file=Path("f")))
    assert (jwks.token_issuer, jwks.token_audience) == ("i", "a")


def test_the_rates_are_those_of_the_limits_until_they_are_set() -> None:
    assert limits_of(Settings()) == Limits()
    rates = RateSettings(joins_burst=3, joins_interval_s=0.5, bots="news, support")
    limits = limits_of(Settings(rates=rates))
    assert limits == Limits(joins_rate=Rate(3, 500), bots=frozenset({"news", "support"}))
    assert refused({"rates.bots": "news,a b"}) == ["--rates-bots: rates.bots: must be user ids, separated by commas"]
