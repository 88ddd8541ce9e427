"""`chatgrpc queue`: lists what a user's devices on this machine have not sent, and drops it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
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
    drop: Annotated[str, typer.Option("--drop", metavar="ID", help="Drop this one, by its id, or all by `all`.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    data_dir: DataDirOption = None,
) -> None:
    """List the messages that wait on this machine, for whichever server, and those that were refused; or drop them.

    No server is asked. What waits goes out when its device connects again: `chatgrpc send` for those of the device `send`, and
    so on. Dropping one that was tried before does not take it back if the server has it already.
    """
    check_user("--as", user)
    try:
        _list_or_drop(state_root(data_dir).glob(f"*/{user}/*"), user, drop, as_json=as_json)
    except OSError as error:
        silence()
        fail(f"the output cannot be written: {error.strerror}", code=1)


def _list_or_drop(folders: Iterable[Path], user: str, drop: str, *, as_json: bool) -> None:
    dropped = listed = 0
    for folder in sorted(folders):
        if not (folder / "store.sqlite3").exists():
            continue
        try:
            with DataDir(folder) as locked, disk_errors():
                store = Store(locked.store_path, user, folder.name)
                try:
                    for message in _messages(store):
                        listed += 1
                        if drop in {"all", message.client_message_id.hex()}:
                            store.drop(message.client_message_id)
                            dropped += 1
                        elif not drop:
                            _print(folder, message, as_json=as_json)
                finally:
                    store.close()
        except ChatError as error:
            complain(f"not looked at: {error}")
    if drop and drop != "all" and not dropped:
        fail(f"no message {safe(drop)} waits; without --drop they are listed with their ids", code=1)
    if drop:
        typer.echo(f"dropped {dropped}")
    elif not listed and not as_json:
        typer.echo("nothing waits")


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
