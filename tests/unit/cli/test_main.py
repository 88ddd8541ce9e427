"""The `chatgrpc` command."""

import asyncio
import json
import os
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints, version
from pathlib import Path

import pytest
import structlog
import typer
from typer.testing import CliRunner, Result

from chatgrpc import masking
from chatgrpc.adapters.jwt import open_verifier
from chatgrpc.cli import main as cli
from chatgrpc.cli.shown_settings import as_toml
from chatgrpc.config import Settings, flag_name, load_settings, setting_fields
from chatgrpc.process.greeting import COMMANDS_GROUP
from chatgrpc.start_error import StartError


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("CHATGRPC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: EntryPoints())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.build_app(), list(arguments))


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["chatgrpc", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def run_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = Path(sys.executable).with_name("chatgrpc")
    return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_help_teaches(no_clients: None) -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for word in ("serve", "token", "config", "CHATGRPC_SERVER__PORT"):
        assert word in shown.output
    assert "chatgrpc chat" not in shown.output, "a command that is not installed"


def test_help_shows_how_two_people_chat_where_the_client_is_installed() -> None:
    assert "chatgrpc chat --as alice --with bob" in run_process("--help").stdout


def test_the_help_of_serve_shows_how_to_start_a_cluster_and_its_settings_hold(
    no_clients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = run("serve", "--help").output.split("A cluster of three")[1].split()
    for assignment in (word for word in words if word.startswith("CHATGRPC_")):
        monkeypatch.setenv(*assignment.split("=", 1))
    lines = " ".join(words).split("chatgrpc serve ")[1:4]
    ports = [line.split()[:4] for line in lines]
    assert [flags[0::2] for flags in ports] == [["--port", "--metrics-port"]] * 3
    loaded = [load_settings({"server.port": flags[1], "server.metrics_port": flags[3]}).settings for flags in ports]
    assert {settings.cluster.enabled for settings in loaded} == {True}
    assert len({settings.server.port for settings in loaded} | {settings.server.metrics_port for settings in loaded}) == 6


def test_every_setting_has_its_flag_in_the_help(no_clients: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("serve", "config"):
        shown = run(command, "--help")
        assert [key for key, _ in setting_fields() if flag_name(key) not in shown.output] == []
    shown = run("cluster", "status", "--help")
    assert "--cluster-etcd-ca-file" in shown.output
    assert "--port" not in shown.output


def test_a_token_is_all_that_stands_on_stdout_and_the_server_accepts_it(no_clients: None, tmp_path: Path) -> None:
    before_s = int(time.time())
    shown = run("token", "alice", "--ttl", "60", "--data-dir", str(tmp_path / "data"))
    assert shown.exit_code == 0
    (token,) = shown.stdout.splitlines()
    verifier = open_verifier(Settings(data_dir=tmp_path / "data"))
    claims = asyncio.run(verifier.verify(token, before_s * 1000))
    assert claims.user_id == "alice"
    assert before_s + 60 <= claims.expires_at_ms / 1000 <= time.time() + 60


def test_a_token_lives_a_day_unless_told(no_clients: None, tmp_path: Path) -> None:
    token = run("token", "alice").stdout.strip()
    verifier = open_verifier(Settings(data_dir=tmp_path / "data"))
    claims = asyncio.run(verifier.verify(token, time.time_ns() // 1_000_000))
    assert 86_300 < claims.expires_at_ms / 1000 - time.time() <= 86_400


def test_a_name_that_is_no_user_id_is_refused(no_clients: None, tmp_path: Path) -> None:
    shown = run("token", "al ice", "--data-dir", str(tmp_path))
    assert shown.exit_code == 2
    assert "is not a user id" in shown.output
    assert run("token", "alice", "--ttl", "0").exit_code == 2
    shown = run("token", "alice", "--ttl", str(31 * 86_400), "--data-dir", str(tmp_path))
    assert shown.exit_code == 2
    assert "auth.token_expiry_max_s" in shown.stderr, "a token that the server would refuse is not made"


def test_no_development_token_where_an_issuer_is_trusted(
    no_clients: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CHATGRPC_AUTH", '{"mode": "jwks", "issuer": "https://issuer.example", "jwks_file": "f"}')
    assert run_main(monkeypatch, "token", "alice") == 2
    assert "tokens come from https://issuer.example" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_wrong_settings_end_in_one_line_each_and_exit_code_two(
    no_clients: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATGRPC_LOG__LEVEL", "loud")
    assert run_main(monkeypatch, "serve", "--port", "x") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(":")[:3] for line in captured.err.splitlines()] == [
        ["chatgrpc", " --port", " server.port"],
        ["chatgrpc", " CHATGRPC_LOG__LEVEL", " log.level"],
    ]


def test_an_unknown_flag_is_refused(no_clients: None) -> None:
    shown = run("serve", "--prot", "5")
    assert shown.exit_code == 2
    assert "--port" in shown.output


def test_config_shows_what_would_hold_and_can_be_read_again(
    no_clients: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHATGRPC_LOG__LEVEL", "debug")
    odd = 'da"ta\\é\t\x7f'
    flags = ["--port", "5", "--data-dir", odd, "--host", "0.0.0.0", "--allow-dev-auth", "--session-hello-timeout-s", "0.25"]
    shown = run("config", *flags)
    assert shown.exit_code == 0
    monkeypatch.delenv("CHATGRPC_LOG__LEVEL")
    file = tmp_path / "shown.toml"
    file.write_text(shown.stdout)
    settings = load_settings({}, file).settings
    assert settings.data_dir == Path(odd)
    assert settings.server.port == 5
    assert settings.server.host == "0.0.0.0"
    assert settings.server.allow_dev_auth is True
    assert settings.session.hello_timeout_s == 0.25
    assert settings.log.level == "debug"
    by_key = {line.split(" =")[0]: line for line in shown.stdout.splitlines() if " =" in line}
    assert "# --port: " in by_key["port"]
    assert "# CHATGRPC_LOG__LEVEL: " in by_key["level"]
    assert "# default: " in by_key["metrics_port"]
    assert by_key["# jwks_url"]


def test_a_token_can_be_for_one_device(no_clients: None, tmp_path: Path) -> None:
    token = run("token", "alice", "--device", "phone", "--data-dir", str(tmp_path)).stdout.strip()
    verifier = open_verifier(Settings(data_dir=tmp_path))
    assert asyncio.run(verifier.verify(token, time.time_ns() // 1_000_000)).device_id == "phone"
    assert run("token", "alice", "--device", "my phone", "--data-dir", str(tmp_path)).exit_code == 2


def test_user_id_tells_what_the_server_makes_of_a_subject(no_clients: None) -> None:
    jwks = ("--auth-mode", "jwks", "--auth-issuer", "i", "--auth-jwks-file", "f")
    shown = run("user-id", "auth0|64b7", *jwks, "--auth-user-id-rule", "escaped")
    assert (shown.exit_code, shown.stdout) == (0, "auth0+7C64b7\n")
    refused = run("user-id", "auth0|64b7", *jwks)
    assert isinstance(refused.exception, StartError)
    assert "auth.user_id_rule is as-is" in str(refused.exception)


def test_config_masks_a_password(no_clients: None) -> None:
    flags = {"auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_url": "https://user:hunter2@issuer.example/keys"}
    shown = as_toml(load_settings(flags))
    assert "hunter2" not in shown
    assert tomllib.loads(shown)["auth"]["jwks_url"] == "https://user:****@issuer.example/keys"


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("cluster.redis", "redis://h:6379/0?password=hunter2"),
        ("cluster.redis", "redis://h:6379/0?db=1&password=hunter2#hunter2"),
        ("cluster.redis", "rediss://hunter2@h:6379/0"),
        ("cluster.redis", "redis://:pa'hunter2@h/0"),
        ("cluster.redis", 'redis://h/0?password="a <hunter2'),
        ("auth.jwks_url", "https://issuer.example/keys?api_key=hunter2"),
        ("auth.jwks_url", "https://issuer.example/keys?hunter2"),
        ("auth.jwks_url", "https://u:p@hunter2@issuer.example/keys"),
    ],
)
def test_config_masks_secrets_wherever_they_stand_in_an_address(no_clients: None, key: str, address: str) -> None:
    flags = {"cluster.etcd": "e:1", "auth.mode": "jwks", "auth.issuer": "i", "auth.jwks_file": "f", key: address}
    if key == "auth.jwks_url":
        del flags["auth.jwks_file"]
    shown = as_toml(load_settings(flags))
    assert "hunter2" not in shown
    assert "****" in shown


def test_what_a_command_says_later_shows_no_address_of_its_settings(monkeypatch: pytest.MonkeyPatch, no_clients: None) -> None:
    monkeypatch.setattr(masking, "_known", {})
    address = "redis://:pa' hunter2@h"
    assert run("config", "--cluster-etcd", "e:1", "--cluster-redis", address).exit_code == 0
    assert masking.mask_addresses(f"ConfigError('{address}')") == "ConfigError('redis://:****@h')"


def test_config_shows_no_secret_and_what_it_shows_can_be_read_again(no_clients: None, tmp_path: Path) -> None:
    flags = {
        "cluster.etcd": "e:1",
        "cluster.redis": "redis://u:hunter2@r:1",
        "cluster.etcd_username": "u",
        "cluster.etcd_password": "hunter2",
        "cluster.cassandra_username": "u",
        "cluster.cassandra_password": "hunter2",
    }
    shown = as_toml(load_settings(flags))
    assert "hunter2" not in shown
    assert tomllib.loads(shown)["cluster"]["redis"] == "redis://u:****@r:1"
    assert "# etcd_password = ****" in shown
    (tmp_path / "shown.toml").write_text(shown)
    again = load_settings({key: flags[key] for key in flags if key.endswith("password")}, tmp_path / "shown.toml").settings
    assert again.cluster.etcd_password == load_settings(flags).settings.cluster.etcd_password


def _fake_node(monkeypatch: pytest.MonkeyPatch, run_node: Callable[[Settings], object]) -> None:
    """The node is another package's; here only that `serve` hands it the settings on a running loop."""
    node = types.ModuleType("chatgrpc.process.run")

    async def run(settings: Settings) -> None:
        run_node(settings)

    node.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chatgrpc.process.run", node)
    monkeypatch.setattr("chatgrpc.process.run", node, raising=False)
    monkeypatch.setattr("chatgrpc.logs.configure", lambda level, form: structlog.get_logger())


def test_serve_runs_the_node_on_uvloop_with_the_settings(no_clients: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Settings, str]] = []
    _fake_node(monkeypatch, lambda settings: seen.append((settings, type(asyncio.get_running_loop()).__module__)))
    shown = run("serve", "--port", "5", "--log-level", "error")
    assert shown.exit_code == 0
    ((settings, loop_module),) = seen
    assert (settings.server.port, settings.log.level) == (5, "error")
    assert loop_module == "uvloop"
    assert shown.stdout == ""


def test_serve_with_workers_supervises_them_and_runs_no_node(no_clients: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[Settings] = []
    supervised: list[Settings] = []
    _fake_node(monkeypatch, nodes.append)

    def run_workers(settings: Settings) -> int:
        supervised.append(settings)
        return 5

    monkeypatch.setattr("chatgrpc.process.workers.run", run_workers)
    assert run("serve", "--workers", "2", "--cluster-etcd", "127.0.0.1:1").exit_code == 5
    ((settings,), none) = supervised, nodes
    assert (settings.server.workers, settings.cluster.etcd_endpoints) == (2, ["127.0.0.1:1"])
    assert none == []


def test_workers_without_a_cluster_are_refused_with_the_reason(
    no_clients: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "serve", "--workers", "2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "server.workers is 2, but there is no cluster: one process keeps all its data in one file" in line


def test_what_stops_a_node_from_starting_is_told_without_a_traceback(
    no_clients: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Settings) -> None:
        raise StartError("port 15551 is taken")

    _fake_node(monkeypatch, fail)
    assert run_main(monkeypatch, "serve") == 2
    assert capsys.readouterr().err == "chatgrpc: port 15551 is taken\n"


def test_an_unexpected_error_is_not_hidden(no_clients: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Settings) -> None:
        raise ZeroDivisionError

    _fake_node(monkeypatch, fail)
    monkeypatch.setattr(sys, "argv", ["chatgrpc", "serve"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_interrupt_ends_with_130(no_clients: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Settings) -> None:
        raise KeyboardInterrupt

    _fake_node(monkeypatch, interrupt)
    assert run_main(monkeypatch, "serve") == 130


def test_installed_packages_add_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("plugin_of_the_test")

    def register(app: typer.Typer) -> None:
        @app.command()
        def wave(who: str) -> None:
            typer.echo(f"hello {who}")

    plugin.register = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugin_of_the_test", plugin)
    found = EntryPoints([EntryPoint("client", "plugin_of_the_test:register", COMMANDS_GROUP)])
    monkeypatch.setattr(cli, "entry_points", lambda group: found.select(group=group))
    assert run("wave", "bob").stdout == "hello bob\n"


def test_a_package_that_cannot_be_loaded_costs_only_its_own_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = EntryPoints([EntryPoint("client", "package_that_is_gone.cli:register", COMMANDS_GROUP)])
    monkeypatch.setattr(cli, "entry_points", lambda group: found.select(group=group))
    cli.build_app()
    assert "package_that_is_gone" in capsys.readouterr().err
    assert run("config").exit_code == 0


def test_the_installed_command_helps() -> None:
    ended = run_process("--help")
    assert ended.returncode == 0
    assert "serve" in ended.stdout


def test_the_version_is_that_of_the_installed_package(no_clients: None) -> None:
    shown = run("--version")
    assert (shown.exit_code, shown.output) == (0, f"chatgrpc {version('chatgrpc')}\n")


def test_the_installed_command_prints_a_token(tmp_path: Path) -> None:
    ended = run_process("token", "bob", "--data-dir", str(tmp_path / "data"))
    assert ended.returncode == 0
    (token,) = ended.stdout.splitlines()
    verifier = open_verifier(Settings(data_dir=tmp_path / "data"))
    assert asyncio.run(verifier.verify(token, time.time_ns() // 1_000_000)).user_id == "bob"


def test_the_installed_command_shows_and_refuses_settings(tmp_path: Path) -> None:
    ended = run_process("config", "--port", "5")
    assert ended.returncode == 0
    assert tomllib.loads(ended.stdout)["server"]["port"] == 5
    (tmp_path / "wrong.toml").write_text("[server]\nprot = 5")
    ended = run_process("config", "--config", str(tmp_path / "wrong.toml"))
    assert ended.returncode == 2
    assert f"chatgrpc: {tmp_path / 'wrong.toml'}: unknown setting server.prot; did you mean server.port?" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.dumps(ended.stdout) == '""'
