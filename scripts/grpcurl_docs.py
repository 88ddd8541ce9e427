"""Keeps docs/grpcurl.md true: each of its console blocks is run against a fresh server, and its output compared or replaced.

All commands of the page run in one shell, one after the other, so a variable that one of them sets holds in the next. Values
that differ from run to run (ids that the server makes, times, tokens) are compared as equal, and an output that differs in
nothing else is left as it stands.
"""

import argparse
import contextlib
import difflib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.ports import accepts, free_port

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "grpcurl.md"
ADDRESS = "localhost:15551"
"""The server's address in the page: the default."""
START_TIMEOUT_S = 60.0

FENCE = "```"
BLOCK_BEGIN = f"{FENCE}console"
PROMPT, CONTINUATION = "$ ", "\\"

VOLATILE = re.compile(
    r'("(?:message_id|client_message_id|session_id|node_id|sync_token|token|next_page_token|'
    r'(?:sent|created|connected|token_expires)_at_ms|server_time_ms)": ?)"[^"]*"'
)
BETWEEN_BATCHES = re.compile(r'\n  \]\n\}\n\{\n  "frames": \[')


@dataclass(frozen=True)
class Step:
    """One command of the page with its output."""

    command: str
    """As it stands in the page, with the lines that continue it."""
    output: str

    def __str__(self) -> str:
        """As it stands in the page."""
        return f"{PROMPT}{self.command}\n{self.output}"

    def is_like(self, other: "Step") -> bool:
        """Whether the two differ at most in volatile values, and in how a stream's frames happened to be batched."""
        return self._lasting() == other._lasting()

    def _lasting(self) -> str:
        return BETWEEN_BATCHES.sub(",", VOLATILE.sub(r"\1…", str(self)))


def main() -> int:
    """Exits with 1 if the page is not true (--check), or cannot be made so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if an output is not what the page says")
    check = parser.parse_args().check
    page = PAGE.read_text()
    written = [step for part in split(page) if isinstance(part, list) for step in part]
    with tempfile.TemporaryDirectory() as data_dir, serving(Path(data_dir)) as address:
        seen = run(written, address, Path(data_dir))
    steps = iter([old if old.is_like(new) else new for old, new in zip(written, seen, strict=True)])
    true_page = "".join(part if isinstance(part, str) else "".join(str(next(steps)) for _ in part) for part in split(page))
    if true_page == page:
        print(f"grpcurl-docs: {len(written)} commands, each with the output that the page shows")
        return 0
    if check:
        sys.stdout.writelines(difflib.unified_diff(page.splitlines(True), true_page.splitlines(True), "page", "seen"))
        return 1
    PAGE.write_text(true_page)
    print(f"grpcurl-docs: {PAGE.relative_to(ROOT)} is written anew")
    return 0


def split(page: str) -> list[str | list[Step]]:
    """The page as text and console blocks in turn; joined they are the page."""
    parts: list[str | list[Step]] = []
    text: list[str] = []
    lines = iter(page.splitlines(keepends=True))
    for line in lines:
        text.append(line)
        if line.strip() == BLOCK_BEGIN:
            parts.append("".join(text))
            parts.append(_steps(lines, text := []))
    return [*parts, "".join(text)]


def _steps(lines: Iterator[str], after: list[str]) -> list[Step]:
    """Reads the steps of a block; puts the line that ends it into `after`."""
    steps: list[Step] = []
    for line in lines:
        if line.strip() == FENCE:
            after.append(line)
            return steps
        if line.startswith(PROMPT):
            command = line.removeprefix(PROMPT)
            while command.endswith(CONTINUATION + "\n"):
                command += next(lines)
            steps.append(Step(command.removesuffix("\n"), ""))
        else:
            steps[-1] = replace(steps[-1], output=steps[-1].output + line)
    raise ValueError(f"{PAGE}: a console block does not end")


def run(steps: list[Step], address: str, data_dir: Path) -> list[Step]:
    """Runs the commands in one shell; returns them with what they printed on both outputs."""
    mark = f"--- {secrets.token_hex(16)} ---"
    script = "".join(f"{step.command.replace(ADDRESS, address)}\necho '{mark}'\n" for step in steps)
    environment = os.environ | {
        "PATH": f"{ROOT / '.tools' / 'bin'}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "CHATGRPC_DATA_DIR": str(data_dir),
    }
    shell = subprocess.run(
        ["bash", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    stdout = shell.stdout.replace(address, ADDRESS).replace(listens_on(address), listens_on(ADDRESS))
    outputs = stdout.split(f"{mark}\n")[:-1]
    return [replace(step, output=output) for step, output in zip(steps, outputs, strict=True)]


def listens_on(address: str) -> str:
    """What the server itself calls an address of this machine."""
    return address.replace("localhost", "127.0.0.1")


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[str]:
    """A server on its defaults, but for the port; gives its address."""
    port = free_port()
    options = ("--port", str(port), "--metrics-port", "0", "--data-dir", str(data_dir), "--log-level", "error")
    server = subprocess.Popen([ROOT / ".venv" / "bin" / "chatgrpc", "serve", *options], stdout=subprocess.DEVNULL)
    try:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not accepts(port):
            if server.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError("grpcurl-docs: the server did not start")
            time.sleep(0.05)
        yield f"localhost:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
