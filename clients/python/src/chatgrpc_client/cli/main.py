"""`chatgrpc-client`: the client's commands by themselves, for machines on which no server is installed."""

from importlib.metadata import version
from typing import Annotated

import typer

from . import register

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


def build_app() -> typer.Typer:
    """The command with its subcommands."""
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
    return app
