"""A device in a process of its own, which a test stops (SIGSTOP) and lets go on: it resumes after each disconnect.

It prints a line for each text it receives and for each end of its stream.
"""

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from chatgrpc.v1 import chat_pb2, session_pb2
from tests.robustness.bad_input.support_scene import Scene
from tests.support.device import Device, DisconnectedError

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60.0


class ReaderProcess:
    """The device's process, seen from the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.texts: list[str] = []
        self.disconnects: list[int] = []
        """Codes, in order; 0 for an end without a Disconnect."""
        self._process = process
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, scene: Scene, user_id: str) -> "ReaderProcess":
        """Starts the device; returns when its session is open."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__), cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"address": scene.address, "token": scene.token(user_id)}).encode() + b"\n")
        assert json.loads(await process.stdout.readline()) == {"open": user_id}
        return cls(process)

    def stop(self) -> None:
        """Stops it: it reads nothing, and answers nothing, and its kernel still acknowledges what arrives."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def until_texts(self, count: int) -> None:
        """Waits until it has received so many texts."""
        async with asyncio.timeout(TIMEOUT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.texts) >= count)

    async def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            self.go_on()
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            async with self._changed:
                if "text" in said:
                    self.texts.append(said["text"])
                if "disconnect" in said:
                    self.disconnects.append(said["disconnect"])
                self._changed.notify_all()


# The process.


def _say(**said: object) -> None:
    print(json.dumps(said), flush=True)


def _show(event: chat_pb2.ChatEvent) -> None:
    if event.content.HasField("text"):
        _say(text=event.content.text.text[:40])


async def _main() -> None:
    job = json.loads(sys.stdin.readline())
    device = Device(job["address"], job["token"], "reader")
    device.on_event = _show
    welcome = await device.connect()
    _say(open=welcome.user_id)
    while True:
        beating = asyncio.create_task(_beat(device, welcome.heartbeat_interval_ms / 1000))
        ended = await device.until_ended(timeout_s=86_400)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        _say(disconnect=ended.disconnect.code if ended.disconnect is not None else 0)
        if ended.__cause__ is not None:
            raise ended.__cause__
        await device.connect()


async def _beat(device: Device, interval_s: float) -> None:
    with contextlib.suppress(DisconnectedError):
        while True:
            await asyncio.sleep(interval_s)
            await device.write(session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat()))


if __name__ == "__main__":
    asyncio.run(_main())
