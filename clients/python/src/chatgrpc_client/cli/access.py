"""What every command needs: where the server is, whose device it is, its token and its folder."""

import inspect
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from chatgrpc.core.ids import is_chat_id, is_user_id

from ..client import Client
from ..config import ClientConfig, TokenProvider
from ..exceptions import TokenUnavailableError
from ..node_channel import NodeChannel
from ..reachability import host_of, is_loopback
from ..unary import Caller
from ..wording import USER_ID_RULE
from . import tokens
from .ending import complain, fail
from .rendering import safe

DEFAULT_ADDRESS = "127.0.0.1:15551"
_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,240}):(?P<port>[0-9]{1,5})")

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
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="CHATGRPC_TOKEN_FILE",
        help="File that holds the access token; read again whenever a newer token is needed.",
        show_default=False,
    ),
]
TokenCommandOption = Annotated[
    str | None,
    typer.Option(
        "--token-command",
        metavar="COMMAND",
        envvar="CHATGRPC_TOKEN_COMMAND",
        help="Shell command that prints an access token; run again whenever a newer token is needed.",
        show_default=False,
    ),
]
TlsOption = Annotated[
    bool, typer.Option("--tls", envvar="CHATGRPC_TLS", help="Use TLS, trusting the authorities that this machine trusts.")
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
    token: str | None = None
    token_file: Path | None = None
    token_command: str | None = None
    tls: bool = False
    tls_ca_file: Path | None = None
    data_dir: Path | None = None

    @property
    def makes_tokens(self) -> bool:
        """Whether no token was given, so that development tokens are made."""
        return self.token is None and self.token_file is None and self.token_command is None

    def token_provider(self) -> TokenProvider:
        """The token that was given, one after another from a file or a command, or development tokens."""
        if (self.token is not None) + (self.token_file is not None) + (self.token_command is not None) > 1:
            raise typer.BadParameter("give at most one of --token, --token-file and --token-command")
        if self.token is not None:
            try:
                return tokens.always(self.token)
            except TokenUnavailableError as error:
                raise typer.BadParameter(str(error)) from error
        if self.token_file is not None:
            return tokens.from_file(self.token_file)
        if self.token_command is not None:
            return tokens.from_command(self.token_command)
        return tokens.development_tokens(self.user_id)

    @property
    def token_hint(self) -> str:
        """How to get another token when the server refuses the one that it was given."""
        if self.makes_tokens:
            return (
                "it was made with the development key found here; if the server runs elsewhere, CHATGRPC_DATA_DIR names its"
                " data folder; if it trusts an identity provider, give one of that by --token, --token-file or --token-command"
            )
        if self.token_file is not None:
            return f"it stood in {self.token_file}; whoever writes that file must renew it"
        if self.token_command is not None:
            return "--token-command printed it"
        issuer = tokens.issuer(self.token or "")
        if issuer in {"", tokens.DEVELOPMENT_ISSUER}:
            made = "`chatgrpc token USER` makes one for development"
            return made if issuer else f"{made}; --token-command and --token-file renew an identity provider's"
        return f"{safe(issuer)} gives out new ones; --token-command and --token-file renew them by themselves"

    def config(self, device: str, **settings: Any) -> ClientConfig:
        """The settings of a device of this user."""
        server_folder = min(_address_folder(address.strip()) for address in self.server.split(","))
        try:
            return ClientConfig(
                address=self.server,
                user_id=self.user_id,
                data_dir=state_root(self.data_dir) / server_folder / self.user_id / device,
                device_name=device,
                tls=self.tls,
                tls_ca_file=self.tls_ca_file,
                waits_for_token=self.token is None,  # whoever writes the file, or is asked by the command, may be a little late
                **settings,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def client(self, device: str, **settings: Any) -> Client:
        """A client that is not open yet."""
        if not device or "/" in device or device.startswith("."):
            raise typer.BadParameter(f"{device!r} is no name for a device: letters, digits and _ - .")
        config, provider = self.config(device, **settings), self.token_provider()
        self._warn_of_clear_text(config)
        return Client(config, provider)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """For calls without a device."""
        config, provider = self.config("none"), self.token_provider()
        self._warn_of_clear_text(config)
        node = NodeChannel(config)
        try:
            yield Caller(node, config, provider, moves=True)
        finally:
            await node.close()

    def _warn_of_clear_text(self, config: ClientConfig) -> None:
        far = [address for address in config.addresses if not is_loopback(address)]
        if far and not config.uses_tls:
            complain(
                f"warning: without TLS the token and all that is said go to {host_of(far[0])} in clear; --tls or --tls-ca FILE"
                " encrypts them"
            )


def takes_access(*, folder: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a function of an `Access`, and of options of its own, into a command with the flags that an access needs.

    Args:
        folder: with `--data-dir` too.
    """
    flags: dict[str, tuple[Any, Any]] = {
        "user": (AsOption, inspect.Parameter.empty),
        "server": (ServerOption, DEFAULT_ADDRESS),
        "token": (TokenOption, None),
        "token_file": (TokenFileOption, None),
        "token_command": (TokenCommandOption, None),
        "tls": (TlsOption, False),
        "tls_ca_file": (CaOption, None),
    }
    if folder:
        flags["data_dir"] = (DataDirOption, None)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]

        @wraps(command)
        def with_flags(user: str, **values: Any) -> None:
            given = {name: values.pop(name) for name in flags if name != "user"}
            command(Access(user_id=user, **given), **values)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            *(parameter.replace(kind=keyword) for parameter in own),
            *(
                inspect.Parameter(name, keyword, default=default, annotation=annotation)
                for name, (annotation, default) in flags.items()
            ),
        ]
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {}
        return with_flags

    return decorate


def state_root(data_dir: Path | None) -> Path:
    """The folder of the state of all servers, users and devices of this machine's user."""
    if data_dir is not None:
        return data_dir
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "chatgrpc"
    except RuntimeError:  # as in a container whose user has no entry in passwd
        fail("this machine's user has no home folder: name a folder with --data-dir, or set HOME", code=2)


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
