"""`chatgrpc-client`: the client's commands by themselves, for machines on which no server is installed."""

import os
from importlib.metadata import version
from typing import Annotated

import typer

_EPILOG = """\
`chatgrpc-client chat --as alice --with bob --server chat.example.com:443 --tls-ca ca.pem --token TOKEN`

Where the server is installed too, the same commands are part of `chatgrpc`.
"""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chatgrpc-client {version('chatgrpc-client')}")
        raise typer.Exit


def _common(
    shows_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What the command itself takes, without a subcommand."""


def main() -> None:
    """Entry point."""
    # gRPC's core writes raw lines to the terminal otherwise; what matters reaches us as a status. Before grpc is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from . import register  # noqa: PLC0415

    app = typer.Typer(
        name="chatgrpc-client",
        help="Chat from the terminal, by a chatgrpc server.",
        epilog=_EPILOG,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    register(app)
    app()
