"""What a server says when it serves: where it is, and what to type next."""

import contextlib
import os
import shlex
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

from chatgrpc.addresses import is_wildcard, join_address
from chatgrpc.config import Settings
from chatgrpc.process.supervisor_line import supervisor_line

DEFAULT_ADDRESS = "127.0.0.1:15551"
"""Where the commands of the client look for a server that is not named."""
COMMANDS_GROUP = "chatgrpc.commands"
"""Entry points of this group are functions `register(app: typer.Typer) -> None` that add commands; the client has one."""


def announce(settings: Settings, port: int) -> None:
    """Says that this process serves on `port`: to its supervisor if it is a worker, else to the person who started it."""
    line = supervisor_line()
    if line is not None:
        line.tell_serving()
    else:
        greet(settings, port)


def greet(settings: Settings, port: int) -> None:
    """Tells the person where the server is, and what to type next."""
    secured = "TLS" if settings.server.tls_cert_file else "no TLS"
    tokens = "development tokens" if settings.auth.mode == "dev" else f"tokens of {settings.token_issuer}"
    address = join_address(settings.server.host, port)
    workers = f" with {settings.server.workers} workers" if settings.server.workers > 1 else ""
    lines = [f"chatgrpc listens on {address}{workers} ({secured}, {tokens}). Ctrl-C stops it."]
    if settings.auth.mode == "dev":
        command = _command()
        if settings.data_dir != Settings().data_dir:
            command = f"CHATGRPC_DATA_DIR={shlex.quote(str(settings.data_dir))} {command}"
        host = "127.0.0.1" if is_wildcard(settings.server.host) else settings.server.host
        reachable = join_address(host, port)
        # Quoted, since zsh refuses the brackets of an IPv6 address where no file's name fits them.
        options = "" if reachable == DEFAULT_ADDRESS else f" --server {shlex.quote(reachable)}"
        if settings.server.tls_cert_file:
            options += f" --tls-ca {shlex.quote(str(settings.server.tls_cert_file))}"
        if entry_points(group=COMMANDS_GROUP):
            lines += [
                "Next, each in a terminal of its own:",
                f"  {command} chat --as alice --with bob{options}",
                f"  {command} chat --as bob --with alice{options}",
            ]
        else:
            lines.append(
                f"The terminal client is not installed here (chatgrpc-client). A token for a client: {command} token alice"
            )
    if settings.cluster.enabled:
        lines.append("Node of a cluster; `chatgrpc cluster status` with the same settings shows all of it.")
    _tell("\n".join(lines))


def _tell(text: str) -> None:
    """Prints it, if anybody reads: a server serves all the same if its output is closed, full, or not read to the end."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def farewell() -> None:
    """Tells the person that the server stops, and how to hasten it."""
    _tell("chatgrpc stops: devices are sent away and what is under way is finished. Ctrl-C again ends it at once.")


def _command() -> str:
    """How this program is called from where the person stands."""
    called = Path(sys.argv[0]).absolute()
    on_path = shutil.which("chatgrpc")
    if on_path is not None and Path(on_path).absolute() == called:
        return "chatgrpc"
    with contextlib.suppress(ValueError):
        return str(called.relative_to(Path.cwd()))
    return str(called)
