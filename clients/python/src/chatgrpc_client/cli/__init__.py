"""The commands of the client, added to `chatgrpc` by its entry point."""

import typer

from .chat import chat
from .devices import devices
from .history import history
from .queue import queue
from .send import send
from .tail import tail


def register(app: typer.Typer) -> None:
    """Adds the client's commands."""
    app.command(epilog="Example: `chatgrpc chat --as alice --with bob`")(chat)
    app.command(epilog="Example: `chatgrpc send --as alice --to bob 'Good morning'`")(send)
    app.command(epilog="Example: `chatgrpc tail --as bob --json`")(tail)
    app.command(epilog="Example: `chatgrpc history --as bob --with alice --json --all`")(history)
    app.command(epilog="Example: `chatgrpc queue --as alice --drop all`")(queue)
    app.command(epilog="Example: `chatgrpc devices --as alice`")(devices)
