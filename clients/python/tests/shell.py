"""The commands in processes of their own, as a person or a script runs them: through pipes, or in a pseudo-terminal."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from chatgrpc.cli.main import build_app
from tests.support.server import ServerProcess

CHATGRPC = str(Path(sys.executable).parent / "chatgrpc")
TIMEOUT_S = 100.0
"""Far above what anything takes, so that a busy machine fails no test."""


class Command:
    """A command that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, condition: Callable[[str], bool]) -> str:
        """Reads lines up to one for which the condition holds; returns it."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while line := (await self.process.stdout.readline()).decode().rstrip("\n"):
                    self.lines.append(line)
                    if condition(line):
                        return line
        except TimeoutError:
            raise AssertionError(f"the line does not come: {self.lines}") from None
        raise AssertionError(f"the output ended: {self.lines}")

    def type(self, *lines: str) -> None:
        """Writes lines to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    async def end(self, number: signal.Signals | None = None) -> int:
        """Signals it, or closes its input, and reads to the end; returns the exit code."""
        if number is not None:
            self.process.send_signal(number)
        elif self.process.stdin is not None:
            self.process.stdin.close()
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            rest = (await self.process.stdout.read()).decode()
            self.lines += rest.splitlines()
            return await self.process.wait()


class Shell:
    """Runs commands against a server, with a home of their own."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.environment = os.environ | {
            "CHATGRPC_ADDRESS": server.address,
            "CHATGRPC_DATA_DIR": str(server.data_dir),
            "XDG_DATA_HOME": str(folder / "home"),
            "COLUMNS": "200",
            "TERM": "xterm",
        }

    @contextlib.asynccontextmanager
    async def start(self, *arguments: str) -> AsyncIterator[Command]:
        """A command that runs for the length of the block."""
        process = await asyncio.create_subprocess_exec(
            CHATGRPC,
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield Command(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def call(self, *arguments: str) -> tuple[int, list[str]]:
        """Runs a command in this process, which is faster; returns its exit code and its lines."""
        result = CliRunner().invoke(build_app(), arguments, env=self.environment)
        return result.exit_code, result.output.splitlines()

    async def run(self, *arguments: str, typed: str = "") -> tuple[int, list[str]]:
        """Runs a command to its end; returns its exit code and its lines."""
        async with self.start(*arguments) as command:
            if typed:
                command.type(typed.rstrip("\n"))
            code = await command.end()
            return code, command.lines


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


class Terminal:
    """A pseudo-terminal with a command in it."""

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.screen = self.all = self.written = ""
        self._descriptor = descriptor
        self._changed = asyncio.Event()
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self._descriptor, 65_536)
        except OSError:
            chunk = b""
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        if b"\x1b[6n" in chunk:
            os.write(self._descriptor, b"\x1b[1;1R")  # prompt_toolkit asks where the cursor is
        written = chunk.decode(errors="replace")
        self.written += written  # as it came, with what steers a terminal
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r", "", written)
        self.screen += text
        self.all += text
        self._changed.set()

    def type(self, text: str) -> None:
        """Presses keys."""
        os.write(self._descriptor, text.encode())

    async def leave(self, key: str) -> int:
        """Presses Ctrl-C or Ctrl-D until the command ends; returns its exit code.

        Between a line and the next prompt the terminal is not in the command's hands, and swallows such a key.
        """
        ended = asyncio.create_task(self.process.wait())
        async with asyncio.timeout(TIMEOUT_S):
            while not ended.done():
                self.type(key)
                await asyncio.wait({ended}, timeout=5)
        return ended.result()

    async def until(self, *wanted: str) -> None:
        """Waits until these stand on the screen, one after the other, since the last call."""
        for text in wanted:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    while text not in self.screen:
                        self._changed.clear()
                        await self._changed.wait()
            except TimeoutError:
                raise AssertionError(f"{text!r} does not come; the screen is {self.screen[-3000:]!r}") from None
            self.screen = self.screen.split(text, 1)[1]

    def close(self) -> None:
        """Takes the terminal away."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)


@contextlib.asynccontextmanager
async def terminal(shell: Shell, *arguments: str) -> AsyncIterator[Terminal]:
    """A command in a terminal of its own."""
    here, there = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        CHATGRPC, *arguments, env=shell.environment, stdin=there, stdout=there, stderr=there, start_new_session=True
    )
    os.close(there)
    window = Terminal(here, process)
    try:
        yield window
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        window.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of the loopback address that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "chatgrpc test")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(built.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"
