"""How commands run and end: one sentence on standard error, an exit code, never a traceback."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import NoReturn

import typer

from chatgrpc.exits import INTERRUPTED, is_of_output

from ..exceptions import (
    CertificatesError,
    ChatError,
    DataDirLockedError,
    DeviceRevokedError,
    TooManyDevicesError,
    UnauthenticatedError,
)
from .rendering import explained, safe_lines


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the command with a message on standard error."""
    complain(message)
    raise typer.Exit(code)


def complain(message: str) -> None:
    """Says something on standard error, if anybody listens."""
    with contextlib.suppress(OSError):  # it is closed or full, and the exit code says it too
        typer.echo(f"chatgrpc: {safe_lines(message, '')}", err=True)


def advice(error: ChatError, token_hint: str = "") -> str:
    """What the error says, and what to do next; safe to print. `token_hint`: how the caller gets another token."""
    said = explained(error)
    match error:
        case DataDirLockedError():
            return f"{said} (--device NAME)"
        case DeviceRevokedError():
            return (
                "this device was revoked and never connects again, and what it had not sent is sent by no other"
                " (`chatgrpc queue` lists it); --device NAME makes another device"
            )
        case TooManyDevicesError():
            return f"{said} `chatgrpc devices` lists them and revokes one"
        case UnauthenticatedError() if token_hint:
            return f"{said} ({token_hint})"
    return said


def run(work: Callable[[], Coroutine[None, None, int]], token_hint: str = "") -> None:
    """Runs a command to its exit code. An interrupt or SIGTERM cancels it, so that it closes what it opened; no traceback."""
    try:
        code = asyncio.run(_until_signalled(work))
    except CertificatesError as error:
        fail(f"--tls-ca: {error}")
    except ChatError as error:
        fail(advice(error, token_hint), code=1)
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at exit.
        silence()
        code = 1
    except OSError as error:
        silence()
        if not is_of_output(error):
            fail(f"{error.strerror}: {error.filename}" if error.filename else f"it failed: {error.strerror or error}", code=1)
        fail(f"the output cannot be written: {error.strerror}", code=1)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code:
        raise typer.Exit(code)


def silence() -> None:
    """Nothing more is written to standard output, which takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
