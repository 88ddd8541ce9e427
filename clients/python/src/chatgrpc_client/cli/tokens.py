"""Where the commands get a token from: given, in a file, from another command, or made with a development key.

A file and a command are asked anew for each connection and before a token ends, so a command that runs for days outlives its
first token.
"""

import asyncio
import base64
import json
import time
from pathlib import Path

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
    """The token that was given."""

    async def provide() -> str:
        return token

    return provide


def from_file(path: Path) -> TokenProvider:
    """What stands in a file at the time."""

    async def provide() -> str:
        try:
            with path.open("rb") as file:
                return _token(file.read(TOKEN_BYTES_MAX), f"--token-file {path}")
        except OSError as error:
            raise TokenUnavailableError(f"cannot read --token-file {path}: {error.strerror}") from error

    return provide


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
            process.kill()
            await process.wait()
    if process.returncode:
        said = safe(complaint.decode(errors="replace").strip().partition("\n")[0])
        raise TokenUnavailableError(f"--token-command ended with status {process.returncode}{f': {said}' if said else ''}")
    return _token(out, "--token-command")


def _token(text: bytes, where: str) -> str:
    token = text.decode(errors="replace").strip()
    if not token:
        raise TokenUnavailableError(f"{where} holds no token")
    if not token.isascii() or any(char.isspace() for char in token) or len(token) >= TOKEN_BYTES_MAX:
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
        if not (data_dir / FILE_NAME).exists():
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
