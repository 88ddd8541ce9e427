"""What every command needs: where the server is, whose device it is, its token and its folder; and how commands end."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from chatgrpc.core.ids import is_chat_id, is_user_id

from ..client import Client
from ..config import ClientConfig, TokenProvider
from ..exceptions import CertificatesError, ChatError, DataDirLockedError, TooManyDevicesError, UnauthenticatedError
from ..node_channel import NodeChannel
from ..unary import Caller
from ..wording import USER_ID_RULE
from .rendering import explained

DEFAULT_ADDRESS = "127.0.0.1:50551"
_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,240}):(?P<port>[0-9]{1,5})")
TOKEN_LIFETIME_S = 3_600
INTERRUPTED = 130

AsOption = Annotated[str, typer.Option("--as", metavar="USER", help="Who you are.")]
ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="HOST:PORT[,…]",
        envvar="CHATGRPC_ADDRESS",
        help="Where the server is; several nodes of one cluster are separated by commas.",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        envvar="CHATGRPC_TOKEN",
        help="Access token. Without it: a development token, made with the key in the data folder of a server on this machine.",
        show_default=False,
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", envvar="CHATGRPC_TLS_CA", help="Use TLS, trusting these certificates (PEM)."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="PATH",
        help="Folder of the devices' state; in it, each server, user and device has a folder of its own: HOST_PORT/USER/DEVICE,"
        " after the address that sorts first if --server names several."
        " Default: ~/.local/share/chatgrpc.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="Which of your devices on this machine this is.")]


@dataclass(frozen=True, slots=True)
class Access:
    """Who calls whom."""

    user_id: str
    server: str
    token: str | None
    tls_ca_file: Path | None
    data_dir: Path | None

    def token_provider(self) -> TokenProvider:
        """The token that was given, or one development token after another."""
        given = self.token
        if given is not None:
            return _always(given)
        return _development_tokens(self.user_id)

    def config(self, device: str, **settings: Any) -> ClientConfig:
        """The settings of a device of this user."""
        server_folder = min(_address_folder(address.strip()) for address in self.server.split(","))
        root = self.data_dir or Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "chatgrpc"
        try:
            return ClientConfig(
                address=self.server,
                user_id=self.user_id,
                data_dir=root / server_folder / self.user_id / device,
                device_name=device,
                tls_ca_file=self.tls_ca_file,
                **settings,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def client(self, device: str, **settings: Any) -> Client:
        """A client that is not open yet."""
        if not device or "/" in device or device.startswith("."):
            raise typer.BadParameter(f"{device!r} is no name for a device: letters, digits and _ - .")
        return Client(self.config(device, **settings), self.token_provider())

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """For calls without a device."""
        config = self.config("none")
        node = NodeChannel(config)
        try:
            yield Caller(node, config, self.token_provider(), moves=True)
        finally:
            await node.close()


def check_user(option: str, user_id: str) -> None:
    """Refuses what cannot be a user; empty: the option is not given."""
    if user_id and not is_user_id(user_id):
        raise typer.BadParameter(f"not a user id: {user_id!r} ({USER_ID_RULE})", param_hint=f"'{option}'")


def check_chat(option: str, chat_id: str) -> None:
    """Refuses what cannot be a chat; empty: the option is not given."""
    if chat_id and not is_chat_id(chat_id):
        raise typer.BadParameter(f"not a chat id: {chat_id!r}; /chats in `chatgrpc chat` lists them", param_hint=f"'{option}'")


def _address_folder(address: str) -> str:
    """The folder of what belongs to a server: what waits for one must not go to another, nor one's numbers be another's.

    The nodes of a cluster are one server. Of several addresses the one that sorts first names its folder, so their order is of
    no account, nor which nodes the client learns of or connects to.
    """
    found = _SERVER.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65_536:
        raise typer.BadParameter(
            f"{address!r} is not HOST:PORT, such as {DEFAULT_ADDRESS}, nor several of them with commas between",
            param_hint="'--server'",
        )
    return f"{found['host'].lower().strip('[]').replace(':', '-')}_{int(found['port'])}"


def _always(token: str) -> TokenProvider:
    async def provide() -> str:
        return token

    return provide


def _development_tokens(user_id: str) -> TokenProvider:
    """Signs tokens as `chatgrpc token` does; the one place where the client's commands use the server's package."""
    try:
        from chatgrpc.adapters.jwt.dev_keys import FILE_NAME, DevIssuer  # noqa: PLC0415 (only where there is no other token)
        from chatgrpc.config import StartError, load_settings  # noqa: PLC0415
    except ModuleNotFoundError:
        fail(
            "no token: give one with --token. (Where a server for development is installed, `chatgrpc token USER` makes them.)"
        )

    try:
        data_dir = load_settings({}, None).settings.data_dir
        if not (data_dir / FILE_NAME).exists():
            fail(
                f"no token, and no development key in {data_dir.absolute()}. Start `chatgrpc serve` first and run this in the"
                " same folder; or set CHATGRPC_DATA_DIR to the server's data folder; or give a token with --token"
            )
        issuer = DevIssuer.open(data_dir)
    except StartError as error:
        fail(str(error))

    async def provide() -> str:
        return issuer.mint(user_id, TOKEN_LIFETIME_S, time.time_ns() // 1_000_000)

    return provide


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the command with a message on standard error."""
    typer.echo(f"chatgrpc: {message}", err=True)
    raise typer.Exit(code)


def advice(error: ChatError) -> str:
    """What the error says, and what to do next."""
    match error:
        case DataDirLockedError():
            return f"{error} (--device NAME)"
        case TooManyDevicesError():
            return f"{error} `chatgrpc devices` lists them and revokes one"
        case UnauthenticatedError():
            return f"{error} (`chatgrpc token USER` makes one for development)"
    return explained(error)


def run(work: Callable[[], Coroutine[None, None, int]]) -> None:
    """Runs a command to its exit code. An interrupt or SIGTERM cancels it, so that it closes what it opened; no traceback."""
    try:
        code = asyncio.run(_until_signalled(work))
    except CertificatesError as error:
        fail(f"--tls-ca: {error}")
    except ChatError as error:
        fail(advice(error), code=1)
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code:
        raise typer.Exit(code)


async def _until_signalled(work: Callable[[], Coroutine[None, None, int]]) -> int:
    task = asyncio.create_task(work())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
