"""Where the commands get a token from: given, in a file, from another command, or made with a development key.

A file and a command are asked anew for each connection and before a token ends, so a command that runs for days outlives its
first token.
"""

import asyncio
import base64
import contextlib
import json
import os
import stat
import threading
import time
from functools import partial
from pathlib import Path

from ..bearer import is_token
from ..config import TokenProvider
from ..exceptions import TokenUnavailableError
from .ending import fail
from .rendering import safe

COMMAND_TIMEOUT_S = 30.0
TOKEN_BYTES_MAX = 64 * 1024
TOKEN_LIFETIME_S = 3_600
DEVELOPMENT_ISSUER = "chatgrpc-dev"
"""Of the tokens that `chatgrpc token` makes."""


def always(token: str) -> TokenProvider:
    """The token that was given.

    Raises:
        TokenUnavailableError: it is none.
    """
    given = _token(token.encode(errors="surrogateescape"), "--token")

    async def provide() -> str:
        return given

    return provide


def from_file(path: Path) -> TokenProvider:
    """What stands in a file at the time. Of a pipe that holds no more, as `<(command)` soon does, the last one."""
    reading: asyncio.Future[tuple[bytes, bool]] | None = None
    last = b""

    async def provide() -> str:
        nonlocal reading, last
        where = f"--token-file {path}"
        if reading is None or reading.done():
            reading = _read(path)
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                token, is_file = await asyncio.shield(reading)
            if token or is_file:
                last = token
            return _token(last, where)
        except TimeoutError:
            raise TokenUnavailableError(f"{where} gave no token within {COMMAND_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise TokenUnavailableError(f"cannot read {where}: {error.strerror}") from error

    return provide


def _read(path: Path) -> "asyncio.Future[tuple[bytes, bool]]":
    """Reads a file, and tells whether it is one, or else a pipe.

    Beside the event loop, and on no thread that the exit waits for: to open a pipe waits for its writer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[bytes, bool]] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def read() -> None:
        try:
            with path.open("rb") as file:
                is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                tell = partial(future.set_result, (file.read(TOKEN_BYTES_MAX), is_file))
        except OSError as error:
            tell = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has gone
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=read, name="token", daemon=True).start()
    return future


def from_command(command: str) -> TokenProvider:
    """What a shell command prints at the time; one at a time is run."""
    running = asyncio.Lock()

    async def provide() -> str:
        async with running:
            return await _printed_by(command)

    return provide


async def _printed_by(command: str) -> str:
    process = await asyncio.create_subprocess_shell(
        command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            out, complaint = await process.communicate()
    except TimeoutError:
        raise TokenUnavailableError(f"--token-command gave no token within {COMMAND_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            # Kills it and closes its pipes, which what it started may hold open; `wait` waits for both.
            process._transport.close()  # type: ignore[attr-defined]
            await process.wait()
    if process.returncode:
        said = safe(complaint.decode(errors="replace").strip().partition("\n")[0])
        raise TokenUnavailableError(f"--token-command ended with status {process.returncode}{f': {said}' if said else ''}")
    return _token(out, "--token-command")


def _token(text: bytes, where: str) -> str:
    token = text.decode(errors="replace").strip()
    if not token:
        raise TokenUnavailableError(f"{where} holds no token")
    if not is_token(token) or len(token) >= TOKEN_BYTES_MAX:
        raise TokenUnavailableError(f"{where}: that is no token, which is one word")
    return token


def development_tokens(user_id: str) -> TokenProvider:
    """Signs tokens as `chatgrpc token` does; the one place where the client's commands use the server's package."""
    try:
        from chatgrpc.adapters.jwt.dev_keys import FILE_NAME, DevIssuer  # noqa: PLC0415 (only where there is no other token)
        from chatgrpc.config import load_settings  # noqa: PLC0415
        from chatgrpc.start_error import StartError  # noqa: PLC0415
    except ModuleNotFoundError:
        fail(
            "no token: give one with --token, or with --token-file or --token-command, which renew it. (Where a server for"
            " development is installed, `chatgrpc token USER` makes them.)"
        )

    try:
        settings = load_settings({}, None).settings
        data_dir = settings.data_dir
        if settings.auth.mode != "dev":
            fail(
                f"no token. By the settings here {settings.auth.issuer} gives them out: get one there, and hand it over with"
                " --token, or with --token-file or --token-command, which renew it"
            )
        try:
            (data_dir / FILE_NAME).stat()  # `exists` says no also of what may not be looked at, from Python 3.14 on
        except (FileNotFoundError, NotADirectoryError):
            fail(
                f"no token, and no development key in {data_dir.absolute()}. Start `chatgrpc serve` first and run this in the"
                " same folder; or set CHATGRPC_DATA_DIR to the server's data folder; or give a token with --token,"
                " --token-file or --token-command"
            )
        issuer = DevIssuer.open(data_dir)
    except StartError as error:
        fail(str(error))
    except OSError as error:
        fail(
            f"cannot read the development key in {data_dir.absolute()}: {error.strerror}. Run this as the user whose server it"
            " is, or give a token with --token, --token-file or --token-command"
        )

    async def provide() -> str:
        return issuer.mint(user_id, TOKEN_LIFETIME_S, time.time_ns() // 1_000_000)

    return provide


def issuer(token: str) -> str:
    """Who a JWT says that it was issued by; empty if it does not say."""
    return str(_claims(token).get("iss", ""))


def _claims(token: str) -> dict[str, object]:
    """What a JWT says, without asking whether it may be believed; nothing if it is none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
