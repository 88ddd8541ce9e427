"""A supervisor, and workers that do no more than it takes to see what it does with them.

`python -m tests.unit.process.supervised_worker supervise FOLDER MODE` supervises; its workers are `… work FOLDER MODE`. Each
writes into FOLDER/PID what it was started with and which signals it got.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from chatgrpc import logs
from chatgrpc.config import Settings, load_settings
from chatgrpc.process.supervisor_line import supervisor_line
from chatgrpc.start_error import StartError


def supervise(folder: Path, mode: str) -> int:
    """As `chatgrpc serve` does it."""
    import asyncio

    from chatgrpc.process.workers import Supervisor

    logs.configure("info", "json")
    command = (sys.executable, "-m", "tests.unit.process.supervised_worker", "work", str(folder), mode)
    try:
        bounds = {"start_late_s": 0.5, "start_timeout_s": 2.0} if mode == "hangs" else {}
        return asyncio.run(Supervisor(load_settings({}).settings, command, **bounds).run())
    except StartError as error:
        print(f"StartError: {error}", file=sys.stderr)
        return 2


def work(folder: Path, mode: str) -> int:
    """`serves`, or `refuses` to start, or `crashes` or `hangs` at it, or is `stubborn` and does not end when it is told to."""
    line = supervisor_line()
    assert line is not None
    settings = load_settings({}).settings
    note = folder / str(os.getpid())
    _write(note, settings, [])
    signals: list[int] = []

    def signalled(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        _write(note, settings, signals)
        if mode != "stubborn":
            time.sleep(0.3)  # A second signal would come now.
            sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signalled)
    line.leave_with_supervisor()
    if mode == "refuses":
        line.tell_failed("no etcd here;\nstart one")
        return 2
    if mode == "crashes":
        return 7
    if mode == "hangs":
        time.sleep(3600)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.server.host, settings.server.port))
        listener.listen()
        line.tell_serving()
        while True:
            time.sleep(3600)


def _write(note: Path, settings: Settings, signals: list[int]) -> None:
    written = note.with_suffix(".new")
    started_with = settings.model_dump(mode="json", include={"server", "cluster"})
    written.write_text(json.dumps({**started_with, "signals": signals, "group": os.getpgrp()}))
    written.rename(note)


if __name__ == "__main__":
    role, where, how = sys.argv[1:]
    sys.exit({"supervise": supervise, "work": work}[role](Path(where), how))
