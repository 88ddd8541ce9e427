"""The `chatgrpc` command."""

import sys
import time
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
import uvloop

from chatgrpc import compiled, logs
from chatgrpc.cli.flags import ConfigOption, DataDirOption, takes_settings
from chatgrpc.cli.shown_settings import as_toml
from chatgrpc.config import LoadedSettings, load_settings
from chatgrpc.edge.engine import mute_core_log, serve_by_polling
from chatgrpc.masking import mask_addresses
from chatgrpc.process import workers
from chatgrpc.process.greeting import COMMANDS_GROUP
from chatgrpc.process.supervisor_line import supervisor_line
from chatgrpc.start_error import StartError

DAY_S = 86_400

_CLIENT_EPILOG = """\
**Two people chatting, in three terminals:**

    chatgrpc serve

    chatgrpc chat --as alice --with bob

    chatgrpc chat --as bob --with alice

"""

_EPILOG = """\
**Calling the API yourself** takes a development token: `chatgrpc token alice` prints one.

**Many nodes** serve as one over etcd, Redis and Cassandra: `chatgrpc serve --help` shows how, `chatgrpc cluster status` how \
they are.

**Settings** come from flags, the environment (`CHATGRPC_SERVER__PORT=15552`) and a file (`--config chatgrpc.toml`); \
`chatgrpc config` shows which holds.
"""


_SERVE_EPILOG = """\
**By itself:**

    chatgrpc serve --port 15552 --data-dir /var/lib/chatgrpc --metrics-port 0

**A cluster of three on one machine,** where etcd, Redis and one Cassandra listen on their usual ports, in a terminal each:

    export CHATGRPC_CLUSTER__ETCD=127.0.0.1:2379 CHATGRPC_CLUSTER__REPLICATION_FACTOR=1

    chatgrpc serve --port 15551 --metrics-port 9464

    chatgrpc serve --port 15552 --metrics-port 9465

    chatgrpc serve --port 15553 --metrics-port 9466

**The same three on one port,** by one command: `chatgrpc serve --workers 3`. `chatgrpc cluster status` shows them.

**On several machines** nodes need TLS between them (`--cluster-tls-ca-file` and its like), `--cluster-relay-host`, \
and `--cluster-relay-advertise` and `--cluster-advertise` if they listen on all addresses.
"""

_STATUS_EPILOG = """\
Example: `chatgrpc cluster status --cluster-etcd 127.0.0.1:2379 --watch`

To wait until a cluster is whole: `until chatgrpc cluster status; do sleep 1; done`
"""


def build_app() -> typer.Typer:
    """The command with its own subcommands and those that installed packages add."""
    added = entry_points(group=COMMANDS_GROUP)
    app = typer.Typer(
        name="chatgrpc",
        help="A chat system over gRPC: the server, and, where chatgrpc-client is installed, a client for the terminal.",
        epilog=_CLIENT_EPILOG + _EPILOG if added else _EPILOG,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    app.command(epilog=_SERVE_EPILOG)(serve)
    app.command(epilog='Example: `grpcurl -H "authorization: Bearer $(chatgrpc token alice)" …`')(token)
    app.command("user-id", epilog="Example: `chatgrpc user-id 'auth0|64b7'`")(user_id)
    app.command(epilog="Example: `CHATGRPC_LOG__LEVEL=debug chatgrpc config --port 15552 > chatgrpc.toml`")(config)
    app.add_typer(_cluster_app(), name="cluster")
    for entry_point in added:
        try:
            entry_point.load()(app)
        except ImportError as error:
            # The server must start even if the client is broken.
            typer.echo(f"chatgrpc: the commands of {entry_point.value} are missing: {error}", err=True)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chatgrpc {version('chatgrpc')}")
        raise typer.Exit


def _common(
    shows_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What the command itself takes, without a subcommand."""


def _cluster_app() -> typer.Typer:
    cluster = typer.Typer(help="Look at a cluster.", no_args_is_help=True, rich_markup_mode="markdown")
    command = takes_settings("cluster.etcd", "cluster.name", "cluster.tls_", "data_dir")(cluster_status)
    cluster.command("status", epilog=_STATUS_EPILOG)(command)

    @cluster.callback()
    def _group() -> None:
        """Without it, the one command would stand for the group."""

    return cluster


@takes_settings()
def serve(loaded: LoadedSettings) -> None:
    """Run the server. On its defaults it needs no other service, and keeps all its data in one folder."""
    settings = loaded.settings
    logs.configure(settings.log.level, settings.log.format)
    if settings.server.workers > 1:
        compiled.check()
        sys.exit(workers.run(settings))
    line = supervisor_line()
    if line is not None:
        line.leave_with_supervisor()
    # gRPC and the stores take time to load, and only this command needs them.
    from chatgrpc.process.run import run  # noqa: PLC0415

    try:
        compiled.check()
        uvloop.run(run(settings))
    except StartError as error:
        if line is None:
            raise
        line.tell_failed(str(error))
        sys.exit(2)


def cluster_status(
    loaded: LoadedSettings,
    shards: Annotated[bool, typer.Option("--shards", help="List every shard with its owner and epoch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object, for scripts.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
) -> None:
    """Show the nodes of a cluster, who owns its shards, their links and what waits.

    Exits with 0 if every shard has an owner and every node answers, with 1 if not, and with 2 if etcd does not answer.
    """
    if not loaded.settings.cluster.enabled:
        raise StartError("cluster.etcd is missing: which etcd knows the cluster? Name it by --cluster-etcd HOST:PORT")
    from chatgrpc.cli import cluster_status as status  # noqa: PLC0415  it takes time to load

    sys.exit(status.show(loaded.settings, shards, as_json, watch))


def token(
    user: Annotated[str, typer.Argument(help="User id: 1 to 64 of A-Z a-z 0-9 _ . @ + -")],
    ttl_s: Annotated[int, typer.Option("--ttl", metavar="SECONDS", min=1, help="How long it is valid.")] = DAY_S,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="The device that alone may use it, and with which it goes.")
    ] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a development token for USER: whoever sends it is that user.

    The server with the same data folder accepts it, whichever of the two is started first. Production verifies the tokens of
    an issuer instead (`auth.mode = "jwks"`).
    """
    settings = load_settings({"data_dir": data_dir}, config).settings
    if settings.auth.mode != "dev":
        raise StartError(f"auth.mode is {settings.auth.mode}: tokens come from {settings.auth.issuer}, not from here")
    longest_s = settings.auth.token_expiry_max_s
    if ttl_s > longest_s:
        raise typer.BadParameter(f"a server takes no token of more than {longest_s:g} seconds (auth.token_expiry_max_s)")
    from chatgrpc.adapters.jwt.dev_keys import DevIssuer  # noqa: PLC0415

    issuer = DevIssuer.open(settings.data_dir)
    try:
        typer.echo(issuer.mint(user, ttl_s, time.time_ns() // 1_000_000, device))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@takes_settings("auth.")
def user_id(
    loaded: LoadedSettings,
    name: Annotated[str, typer.Argument(help="What the issuer calls the user: the claim that auth.user_id_claim names.")],
) -> None:
    """Print the user id that the server makes of what an issuer calls a user."""
    from chatgrpc.adapters.jwt.user_ids import user_id_of  # noqa: PLC0415

    auth = loaded.settings.auth
    made = user_id_of(name, auth.user_id_rule)
    if made is None:
        raise StartError(f"auth.user_id_rule is {auth.user_id_rule}, which makes no user id of that: its tokens are refused")
    typer.echo(made)


@takes_settings()
def config(loaded: LoadedSettings) -> None:
    """Show the settings as `serve` would use them, as TOML, each with where its value came from."""
    typer.echo(as_toml(loaded))


def main() -> None:
    """Runs the command. Exits with 2 when it, its settings or its surroundings are wrong, with 130 on an interrupt."""
    prepare()
    run(build_app())


def prepare() -> None:
    """Chooses gRPC's engine. Before any command is loaded: those of the client import grpc."""
    serve_by_polling()
    mute_core_log()


def run(app: typer.Typer) -> None:
    """Runs the command that was typed; see `main`."""
    try:
        app()
    except StartError as error:
        for line in str(error).splitlines():
            typer.echo(f"chatgrpc: {mask_addresses(line)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
