"""G5: a slow or silent device costs bounded memory; the log is the buffer, not the process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import device_service_pb2, session_pb2
from tests.support.cast import Cast
from tests.support.checker import check_held
from tests.support.device import Device
from tests.support.outbox import Outbox
from tests.support.server import ServerProcess, running_server

MIB = 1024 * 1024
LIMITS = Limits()
READERS = 12
MESSAGES = 1_600
MESSAGE_BYTES = 10_000
SPARE_BYTES = 24 * MIB
"""What the server may take for other things: SQLite's caches, gRPC's buffers, the allocator's slack."""


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose memory is these tests' doing; it is patient with readers that stop."""
    settings = {"CHATGRPC_SESSION__SLOW_READER_TIMEOUT_S": "300"}
    server = ServerProcess(tmp_path_factory.mktemp("weighed") / "data", settings)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.close()


@pytest.fixture
async def people(weighed: ServerProcess, request: pytest.FixtureRequest) -> AsyncIterator[Cast]:
    """People on that server."""
    cast = Cast(weighed, f"g5{len(request.node.name)}")
    yield cast
    await cast.close()


async def fill(device: Device, chat_id: str, count: int, size_bytes: int) -> None:
    """Sends texts of a size; returns when all are committed."""
    outbox = Outbox(device, window=32)
    for number in range(count):
        outbox.compose(chat_id, f"{number} ".ljust(size_bytes, "."))
    await outbox.flush()


@pytest.mark.embedded_only("it weighs the one process")
@pytest.mark.parametrize("silent", [False, True], ids=["stopped_reading", "reads_and_never_acknowledges"])
async def test_devices_that_do_not_keep_up_cost_a_window_each_and_miss_nothing(
    weighed: ServerProcess, people: Cast, silent: bool
) -> None:
    """Held in memory, what they have not read would be all that was written, for each of them."""
    alice = await people.online("alice")
    names = [f"reader{number}" for number in range(READERS)]
    chat_id = await people.group("alice", *names)
    readers = [await people.online(name) for name in names]
    for reader in readers:
        await reader.until_held(chat_id, 1)
        if silent:
            reader.auto_ack = False
        else:
            reader.stop_reading()
    await fill(alice, chat_id, 50, MESSAGE_BYTES)  # the server has made itself at home
    before_bytes = weighed.rss_bytes()
    await fill(alice, chat_id, MESSAGES, MESSAGE_BYTES)
    growth_bytes = weighed.rss_bytes() - before_bytes
    allowed_bytes = READERS * 2 * LIMITS.unacknowledged_bytes_max + SPARE_BYTES
    assert growth_bytes < allowed_bytes < READERS * MESSAGES * MESSAGE_BYTES / 3
    if silent:
        for reader in readers:
            pushed = len(reader.held.events[chat_id])
            assert pushed <= LIMITS.unacknowledged_bytes_max / MESSAGE_BYTES + 1

    log = await people.caller("alice").log(chat_id)
    for reader in readers:
        reader.read_on()
        reader.auto_ack = True
        await reader.ack(chat_id, reader.held.cursors[chat_id])
    for reader in readers:
        await reader.until_held(chat_id, len(log))
        check_held(reader.held, log)


async def test_what_is_shown_to_a_device_that_does_not_read_is_only_the_latest(cast: Cast) -> None:
    """Typing does not queue up behind what is unread; it replaces what was to be shown before."""
    alice, bob, carol = [await cast.online(name) for name in ("alice", "bob", "carol")]
    chat_id = await cast.group("alice", "bob", "carol")
    for device in (alice, bob, carol):
        await device.until_held(chat_id, 1)
    carol.stop_reading()
    await fill(alice, chat_id, 60, MESSAGE_BYTES)  # more than what the network takes for a reader that stops
    await bob.typing(chat_id, session_pb2.TYPING_KIND_RECORDING)
    for _ in range(300):
        await bob.typing(chat_id, session_pb2.TYPING_KIND_STOPPED)
    await bob.heartbeat()
    carol.read_on()
    await carol.until_held(chat_id, 61)
    await alice.send(chat_id, "the last")
    await carol.until_held(chat_id, 62)
    shown = [frame.typing.kind for frame in carol.taken() if frame.HasField("typing")]
    assert shown == [session_pb2.TYPING_KIND_STOPPED]


async def test_a_silent_device_is_given_up(impatient_cast: Cast) -> None:
    """Two and a half heartbeat intervals without a word; those who speak stay."""
    silent, awake = await impatient_cast.online("silent"), await impatient_cast.online("awake")
    speaking = asyncio.create_task(_speak(awake))
    ended = await silent.until_ended()
    assert ended.disconnect is not None
    assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_HEARTBEAT_MISSED
    assert len(silent.heartbeats) >= 1
    assert awake.is_open
    speaking.cancel()


async def test_a_device_that_does_not_read_is_given_up_and_resumes(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data", {"CHATGRPC_SESSION__SLOW_READER_TIMEOUT_S": "1"}) as server:
        cast = Cast(server, "g5")
        alice, bob = await cast.online("alice"), await cast.online("bob")
        chat_id = await cast.group("alice", "bob")
        await bob.until_held(chat_id, 1)
        bob.stop_reading()
        await fill(alice, chat_id, 100, MESSAGE_BYTES)
        caller = cast.caller("alice")
        async with asyncio.timeout(20):
            while (await cast.caller("bob").devices.ListDevices(device_service_pb2.ListDevicesRequest())).devices[0].online:
                await asyncio.sleep(0.1)
        bob.read_on()
        ended = await bob.until_ended()
        assert ended.disconnect is None or ended.disconnect.code == session_pb2.DISCONNECT_CODE_SLOW_READER
        await bob.connect()
        log = await caller.log(chat_id)
        await bob.until_held(chat_id, len(log))
        check_held(bob.held, log)
        await cast.close()


async def _speak(device: Device) -> None:
    while True:
        await device.heartbeat()
        await asyncio.sleep(0.5)
