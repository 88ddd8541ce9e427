"""Processes of services: each ends with the process that started it, by three means, since each of them may miss.

- `stop`, when the fixture or the command that asked for it ends;
- the kernel, when the starter dies (PR_SET_PDEATHSIG, set by `setpriv`), be it by SIGKILL;
- the next start in this checkout, which ends what stands in the notes of starters that are gone (`end_orphans`).

Only processes of such notes are ever ended, by id and start time: an id may have gone to somebody else meanwhile.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.services.folder import FOLDER, ServiceError, say

_RUNS = FOLDER / "run"
_NOTE = "process.json"
_STOP_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 3_000


class ServiceProcess:
    """One process of a service on a folder of its own; it keeps its folder and address across restarts.

    Start it from the main thread: to the kernel, the thread that starts a process is its parent.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[Path], Sequence[str]],
        environment: Mapping[str, str],
        kept_data: Path | None = None,
    ) -> None:
        """Makes the folder.

        Args:
            name: for people, and unique within this process.
            command: the command line, given the folder for data.
            environment: what is set besides our own.
            kept_data: the folder for data, if it shall outlive this process; else it ends with it.
        """
        self.name = re.sub(r"[^\w.-]", "-", name)
        self.folder = _own_run() / self.name
        self.data = kept_data or self.folder / "data"
        self.log_path = self.folder / "log"
        self.folder.mkdir(parents=True)
        self.data.mkdir(parents=True, exist_ok=True)
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id; it must be running."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Starts it, and does not wait until it answers."""
        assert not self.running, f"{self.name} runs already"
        setpriv = shutil.which("setpriv")
        tied = (setpriv, "--pdeathsig", "KILL", "--") if setpriv is not None else ()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                (*tied, *self._command(self.data)),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                # A Ctrl-C at the terminal goes to us, and we end it in order.
                start_new_session=True,
            )
        (self.folder / _NOTE).write_text(json.dumps(_identity(self._process.pid)))

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Waits until the service answers.

        Raises:
            ServiceError: it ended, or did not answer in time; with the end of its log.
        """
        give_up_at = time.monotonic() + timeout_s
        while True:
            if not self.running:  # asked first: what is ready may be somebody else
                raise ServiceError(f"{self.name} ended as it started; its log ends with:\n{self.log_tail()}")
            if ready():
                return
            if time.monotonic() > give_up_at:
                raise ServiceError(f"{self.name} did not answer within {timeout_s:g} s; its log ends with:\n{self.log_tail()}")
            time.sleep(0.02)

    def pause(self) -> None:
        """Stops its clock, so to say (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends it as a crash does (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ends it in order (SIGTERM), or as a crash does when it takes too long; its exit status, or 0 if it did not run."""
        return self._end(signal.SIGTERM) if self.running else 0

    def close(self) -> None:
        """Ends it, paused or not, and removes its folder."""
        if self.running:
            self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self) -> str:
        """The end of what it printed."""
        with contextlib.suppress(OSError):
            return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return ""

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None, f"{self.name} is not running"
        self._process.send_signal(number)
        try:
            status = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        (self.folder / _NOTE).unlink(missing_ok=True)
        return status


def end_orphans() -> None:
    """Ends the processes, and removes the folders, of starters that are gone."""
    for run in _RUNS.glob("*"):
        starter = _read(run / _NOTE)
        if starter is not None and _process_of(starter) is not None:
            continue
        for note in run.glob(f"*/{_NOTE}"):
            orphan = _process_of(_read(note) or {})
            if orphan is not None:
                say(f"ending {note.parent.name} (process {orphan.pid}), which its starter left behind")
                with contextlib.suppress(psutil.NoSuchProcess):
                    orphan.kill()
                    orphan.wait(_STOP_TIMEOUT_S)
        shutil.rmtree(run, ignore_errors=True)


@functools.cache
def _own_run() -> Path:
    """The folder of what this process starts."""
    end_orphans()
    run = _RUNS / str(os.getpid())
    # The note appears with the folder: without it, somebody else's `end_orphans` would take it for a leftover.
    fresh = FOLDER / f"{run.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / _NOTE).write_text(json.dumps(_identity(os.getpid())))
    _RUNS.mkdir(exist_ok=True)
    fresh.rename(run)
    atexit.register(shutil.rmtree, run, ignore_errors=True)
    return run


def _identity(pid: int) -> dict[str, float]:
    return {"pid": pid, "started_at_s": psutil.Process(pid).create_time()}


def _read(note: Path) -> dict[str, float] | None:
    try:
        read: dict[str, float] = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    return read


def _process_of(identity: Mapping[str, float]) -> psutil.Process | None:
    """The process that was meant, if it still runs."""
    with contextlib.suppress(psutil.NoSuchProcess, KeyError):
        process = psutil.Process(int(identity["pid"]))
        if process.create_time() == identity["started_at_s"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None
