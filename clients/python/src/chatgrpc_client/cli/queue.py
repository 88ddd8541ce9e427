"""`chatgrpc queue`: lists what a user's devices on this machine have not sent, and drops it."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Annotated

import typer

from ..datadir import DataDir
from ..exceptions import ChatError
from ..store import QueuedMessage, Store, disk_errors
from .access import DataDirOption, check_user, state_root
from .ending import complain, fail, silence
from .rendering import clock, dump, safe

TEXT_CHARS = 60


def queue(
    user: Annotated[str, typer.Option("--as", metavar="USER", help="Who you are.")],
    drop: Annotated[
        str | None, typer.Option("--drop", metavar="ID", help="Drop this one, by its id, or all by `all`.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    data_dir: DataDirOption = None,
) -> None:
    """List the messages that wait on this machine, for whichever server, and those that were refused; or drop them.

    No server is asked. What waits goes out when its device connects again: `chatgrpc send` for those of the device `send`, and
    so on. Dropping one that was tried before does not take it back if the server has it already. Exit code: 1 if a device could
    not be looked at, as while a program uses it, or if there is no such message to drop.
    """
    check_user("--as", user)
    if drop == "":
        raise typer.BadParameter("it names no message; without it they are listed with their ids", param_hint="'--drop'")
    root = state_root(data_dir)
    try:
        if data_dir is not None and not S_ISDIR(_mode(data_dir)):
            raise typer.BadParameter(f"there is no folder {data_dir}", param_hint="'--data-dir'")
        folders = _folders(root, user)
    except OSError as error:
        fail(f"cannot look into {root}: {error.strerror}", code=1)
    try:
        _list_or_drop(folders, user, drop, as_json=as_json)
    except OSError as error:
        silence()
        fail(f"the output cannot be written: {error.strerror}", code=1)


def _folders(root: Path, user: str) -> list[Path]:
    """The folders of the user's devices, for all servers. (`glob` would leave out what may not be read.)"""
    servers = [server / user for server in _inside(root)]
    return sorted(device for server in servers for device in _inside(server) if _mode(device / "store.sqlite3"))


def _inside(folder: Path) -> list[Path]:
    return [Path(entry) for entry in os.scandir(folder)] if S_ISDIR(_mode(folder)) else []


def _mode(path: Path) -> int:
    """The mode of a file or folder, 0 if there is none; what may not be looked at raises.

    From Python 3.14 on `Path.is_dir` and `Path.exists` say of that too that it is not there.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _list_or_drop(folders: Iterable[Path], user: str, drop: str | None, *, as_json: bool) -> None:
    dropped = listed = unseen = 0
    for folder in folders:
        try:
            with DataDir(folder) as locked, disk_errors():
                store = Store(locked.store_path, user, folder.name)
                try:
                    for message in _messages(store):
                        listed += 1
                        if drop in {"all", message.client_message_id.hex()}:
                            store.drop(message.client_message_id)
                            dropped += 1
                        elif drop is None:
                            _print(folder, message, as_json=as_json)
                finally:
                    store.close()
        except ChatError as error:
            unseen += 1
            complain(f"not looked at: {error}")
    elsewhere = ", as far as could be looked" if unseen else ""
    if drop is not None and drop != "all" and not dropped:
        fail(f"no message {safe(drop)} waits{elsewhere}; without --drop they are listed with their ids", code=1)
    if drop is not None:
        typer.echo(f"dropped {dropped}")
    elif not listed and not as_json:
        typer.echo(f"nothing waits{elsewhere}")
    if unseen and not (dropped and drop != "all"):
        raise typer.Exit(1)


def _messages(store: Store) -> Iterator[QueuedMessage]:
    yield from store.outbox_messages(failed=False)
    yield from store.outbox_messages(failed=True)


def _print(folder: Path, message: QueuedMessage, *, as_json: bool) -> None:
    server, device = folder.parent.parent.name, folder.name
    body = message.content.WhichOneof("body") or "unsupported"
    to, failed = message.to_user_id or message.chat_id, message.error
    if as_json:
        facts = {
            "client_message_id": message.client_message_id.hex(),
            "status": "queued" if failed is None else "refused",
            "server": server,
            "device": device,
            "to": to,
            "chat_id": message.chat_id,
            "type": body,
            "text": message.content.text.text,
            "composed_at_ms": message.composed_at_ms,
            "error": "" if failed is None else failed.message,
        }
        typer.echo(dump(facts))
        return
    text = safe(message.content.text.text)[:TEXT_CHARS] if body == "text" else f"({body})"
    state = "waits" if failed is None else f"refused: {safe(failed.message)}"
    where = f"{clock(message.composed_at_ms)}  {server} {device} → {safe(to)}"
    typer.echo(f"{message.client_message_id.hex()}  {where}: {text}  [{state}]")
