"""Bad input: streams by the thousand. Opened and dropped as fast as that, and held without a word."""

import asyncio
import itertools
import time

import grpc
import pytest

from chatgrpc.v1 import node_service_pb2, node_service_pb2_grpc, user_service_pb2, user_service_pb2_grpc
from tests.contract.http2_peer import grpc_message
from tests.robustness.bad_input.support_http2 import Sender, data, headers, streams_from
from tests.robustness.bad_input.support_scene import MIB, Scene
from tests.robustness.bad_input.support_stream import batch_of, heartbeat, hello

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATE_PER_S = 1_000
CONNECTIONS = 10
USERS = 100
DEVICES = 10
BYTES_PER_STREAM_MAX = 100 * 1024
"""What an idle stream may cost: a device's whole connection."""


async def test_a_thousand_streams_opened_and_dropped_a_second(scene: Scene, long: bool) -> None:
    """Half of them are dropped with their Hello still on its way, half once they are welcome.

    So many a second are begun where the machine has time for it; how many it were stands in the notes.
    """
    each = (20 if long else 4) * RATE_PER_S // CONNECTIONS
    hellos = itertools.cycle(_hellos(scene, USERS, DEVICES))
    pace_s = CONNECTIONS / RATE_PER_S
    opened = welcomed = 0
    last_opened_s = 0.0

    async def drop_once_welcome(sender: Sender, stream: int) -> None:
        nonlocal welcomed
        async with asyncio.timeout(30):
            await sender.until_heard(stream)
        welcomed += not sender.is_over(stream)  # what is not welcome is told so, and ended
        await sender.reset(stream)

    async def churn(sender: Sender, tasks: asyncio.TaskGroup) -> None:
        nonlocal opened, last_opened_s
        due_s = time.monotonic()
        for count, stream in enumerate(itertools.islice(streams_from(), each)):
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            due_s += pace_s
            await sender.open(stream, next(hellos), then_reset=bool(count % 2))
            opened, last_opened_s = opened + 1, time.monotonic()
            if count % 2 == 0:
                tasks.create_task(drop_once_welcome(sender, stream))

    async with scene.attack("1,000 streams opened and dropped a second", growth_max_mib=48) as sighting:
        senders = [await Sender.connect(scene.server.port) for _ in range(CONNECTIONS)]
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for sender in senders:
                tasks.create_task(churn(sender, tasks))
        rate = opened / (last_opened_s - started_s)
        assert not any(sender.closed.is_set() for sender in senders)
        await asyncio.gather(*(sender.close() for sender in senders))
        sighting.notes |= {"per second": round(rate), "welcomed": f"{welcomed} of {opened}"}
    assert opened == each * CONNECTIONS
    assert welcomed > 0


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Watch", "chatgrpc.v1.ChatService/ListChats"])
async def test_calls_that_are_held_open(scene: Scene, method: str) -> None:
    """By peers without a token: those who watch the health and never end, and calls whose request does not come."""
    message = {"Watch": grpc_message(b""), "ListChats": b""}[method.rpartition("/")[2]]
    async with scene.attack(f"500 open calls of {method}") as sighting:
        before = await scene.vitals()
        senders = [await Sender.connect(scene.server.port) for _ in range(5)]
        for sender in senders:
            for stream in range(1, 200, 2):
                await sender.peer.send(headers(stream, path=f"/{method}"), data(stream, message))
        await asyncio.sleep(1)
        held = await scene.vitals()
        sighting.notes["tasks"] = held.tasks - before.tasks
        await asyncio.gather(*(sender.close() for sender in senders))


@pytest.mark.parametrize("method", ["NodeService/ListNodes", "UserService/GetUser", "ChatService/JoinByLink"])
async def test_calls_that_never_send_their_request_lock_nobody_out(scene: Scene, method: str) -> None:
    """1,200 of them, with the token of one user or none where none is asked for: more than a node answers at once.

    The innocent come once the server has refused what it does not hold: it takes calls one after the other, which says how fast
    it is and not who is let in. What it holds, it holds for 30 seconds.
    """
    is_public = method == "NodeService/ListNodes"
    token = "" if is_public else f"Bearer {scene.token('patient')}"
    async with scene.attack(f"1,200 calls of {method} without a request"):
        senders = [await Sender.connect(scene.server.port) for _ in range(12)]
        for sender in senders:
            opening = (headers(stream, path=f"/chatgrpc.v1.{method}", authorization=token) for stream in range(1, 200, 2))
            await sender.peer.send(*opening)
        async with asyncio.timeout(60):
            while not is_public and sum(len(sender.ended) for sender in senders) < 1_100:
                await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(scene.address) as channel:
            users, nodes = user_service_pb2_grpc.UserServiceStub(channel), node_service_pb2_grpc.NodeServiceStub(channel)
            metadata = (("authorization", f"Bearer {scene.token('innocent')}"),)
            for _ in range(20):
                await users.GetUser(user_service_pb2.GetUserRequest(), metadata=metadata, timeout=20)
                if not is_public:
                    await nodes.ListNodes(node_service_pb2.ListNodesRequest(), timeout=20)
        await asyncio.gather(*(sender.close() for sender in senders))


async def test_idle_streams(scene: Scene, long: bool) -> None:
    """Devices that are there and say nothing but that: the server holds little for each, on a connection of its own or not."""
    for count, per_connection in ((2_000, 1), (2_000, 100)) if long else ((500, 1),):
        await _hold_idle(scene, count, per_connection)


async def _hold_idle(scene: Scene, count: int, per_connection: int) -> None:
    bytes_max_mib = count * BYTES_PER_STREAM_MAX // MIB
    hellos = _hellos(scene, count // DEVICES, DEVICES)
    async with scene.attack(
        f"{count} idle streams, {per_connection} a connection", growth_max_mib=bytes_max_mib, peak_growth_max_mib=bytes_max_mib
    ) as sighting:
        before = await scene.vitals()
        senders = [await Sender.connect(scene.server.port) for _ in range(count // per_connection)]
        places = [(sender, stream) for sender in senders for stream in range(1, 2 * per_connection, 2)]
        beating = asyncio.create_task(_beat(places))
        for start in range(0, count, 50):
            some = places[start : start + 50]
            for (sender, stream), message in zip(some, hellos[start : start + 50], strict=True):
                await sender.open(stream, message)
            await asyncio.gather(*(sender.until_heard(stream) for sender, stream in some))
        await asyncio.sleep(0.5)
        held = await scene.vitals()
        assert held.streams == before.streams + count
        sighting.notes["KiB per stream"] = round((held.rss_bytes - before.rss_bytes) / count / 1024, 1)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await asyncio.gather(*(sender.close() for sender in senders))


async def _beat(places: list[tuple[Sender, int]]) -> None:
    """Says on every stream that has begun that its device is there."""
    beat = grpc_message(batch_of(heartbeat()))
    while True:
        await asyncio.sleep(1.5)
        for sender, stream in places:
            if stream in sender.heard:
                await sender.send_data(stream, beat)


def _hellos(scene: Scene, users: int, devices: int) -> list[bytes]:
    """A batch with a Hello for each of so many devices of so many users."""
    tokens = [scene.token(f"user-{number}") for number in range(users)]
    return [batch_of(hello(token, f"device-{number}")) for number in range(devices) for token in tokens]
