"""Bad input: peers that stop. Those who do not read, do not acknowledge, do not go on, or are not there any more."""

import asyncio
import contextlib
import struct

import grpc
import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import content_pb2, message_service_pb2, session_pb2
from tests.contract.http2_peer import END_STREAM, PREFACE, SETTINGS, Http2Peer, frame, grpc_message
from tests.robustness.bad_input.support_http2 import RawStream, data, headers, preface
from tests.robustness.bad_input.support_reader import ReaderProcess
from tests.robustness.bad_input.support_scene import MIB, Scene
from tests.robustness.bad_input.support_stream import BareStream, FrameStream, heartbeat
from tests.robustness.support_proxy import freezing_proxy
from tests.support.callers import Caller
from tests.support.device import Device
from tests.support.server import channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits()
TEXTS = 1_500
TEXT_BYTES = 4_000
_DISCONNECTS = "chatgrpc_disconnects_total{DISCONNECT_CODE_%s}"
_SMALL_WINDOW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
"""A client that lets the server send 64 KiB and no more before it reads."""


async def test_a_reader_that_stops_while_a_group_floods_it(scene: Scene) -> None:
    """Six megabytes come for it. The stream ends as SLOW_READER; when the device reads again it resumes, and misses nothing."""
    async with Device(scene.address, scene.token("flood-a"), "a") as sender:
        group = await _group(scene, "flood-a", "stopped")
        async with (
            scene.attack("a reader that stops, 6 MB for it") as sighting,
            grpc.aio.insecure_channel(scene.address, options=_SMALL_WINDOW) as shared,
        ):
            stream = BareStream(scene.address, shared_channel=shared)
            await stream.open(scene.token("stopped"), "slow")
            before = (await scene.metrics()).get(_DISCONNECTS % "SLOW_READER", 0)
            await _flood(sender, group)
            while (await scene.metrics()).get(_DISCONNECTS % "SLOW_READER", 0) == before:
                await stream.send_frames(heartbeat())  # it is alive, it only does not read
                await asyncio.sleep(0.1)
            outcome = await stream.outcome()
            assert outcome.disconnect is not None
            assert outcome.disconnect.code == session_pb2.DISCONNECT_CODE_SLOW_READER
            assert outcome.status == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert outcome.reason == "SLOW_READER"
            received = [frame.event for frame in outcome.frames if frame.HasField("event")]
            assert [event.seq for event in received] == list(range(1, len(received) + 1))
            sighting.notes["received before the end"] = len(received)
            async with Device(scene.address, scene.token("stopped"), "slow") as again:
                await again.until_held(group, TEXTS + 1)
                assert again.held.texts(group) == _texts()


async def test_a_reader_that_pauses_is_caught_up(scene: Scene) -> None:
    """It pauses for less than the timeout, again and again: nobody disconnects it, and it gets everything in order."""
    async with Device(scene.address, scene.token("flood-b"), "b") as sender:
        group = await _group(scene, "flood-b", "pausing")
        async with (
            scene.attack("a reader that pauses, 6 MB for it"),
            grpc.aio.insecure_channel(scene.address, options=_SMALL_WINDOW) as shared,
        ):
            stream = BareStream(scene.address, shared_channel=shared)
            await stream.open(scene.token("pausing"), "slow")
            flooding = asyncio.create_task(_flood(sender, group))
            seq = 0
            while seq < TEXTS + 1:
                frame = await stream.next_frame()
                assert frame is not None, await stream.outcome()
                if not frame.HasField("event"):
                    continue
                assert frame.event.seq == seq + 1
                seq = frame.event.seq
                if seq % 300 == 0:
                    await asyncio.sleep(0.5)
                if seq % 50 == 0:
                    await stream.send_frames(session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=group, seq=seq)))
            await flooding
            await stream.close()


async def test_a_slow_link_is_not_taken_for_a_reader_that_stopped(scene: Scene, long: bool) -> None:
    """It takes what waits for it steadily, and longer than a reader may stop, or a device be silent."""
    count, bytes_per_s = (300, 40_000) if long else (130, 100_000)
    group = await _group(scene, "flood-e", "distant")
    async with Device(scene.address, scene.token("flood-e"), "e") as sender:
        await _flood(sender, group, count)
    async with (
        scene.attack(f"a slow link, {count * TEXT_BYTES // 1000} KB for it"),
        await RawStream.connect(scene.server.port, bytes_per_s) as stream,
    ):
        await stream.open(scene.token("distant"), "distant")
        beating = asyncio.create_task(_beat(stream))
        for seq in range(1, count + 2):
            assert (await stream.until("event")).event.seq == seq
            if seq % 10 == 0:
                await stream.send_frames(session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=group, seq=seq)))
        beating.cancel()


async def test_a_device_that_never_acknowledges(scene: Scene) -> None:
    """It gets a window of events and then waits, however many there are; it is told so; an Ack lets it go on."""
    async with Device(scene.address, scene.token("flood-c"), "c") as sender:
        group = await _group(scene, "flood-c", "silent")
        async with scene.attack("a device that never acknowledges"), BareStream(scene.address) as stream:
            await stream.open(scene.token("silent"), "silent")
            await _flood(sender, group, size=10)
            await stream.send_frames(heartbeat(2))
            pushed = 0
            async with asyncio.timeout(30):
                while pushed < LIMITS.unacknowledged_events_max:
                    pushed = max(pushed, (await stream.until("event")).event.seq)
            await asyncio.sleep(1)
            await stream.send_frames(heartbeat(3))
            answer = await stream.answer(3)
            assert [(head.chat_id, head.seq) for head in answer.heartbeat.heads] == [(group, TEXTS + 1)]
            assert pushed == LIMITS.unacknowledged_events_max
            await stream.send_frames(session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=group, seq=pushed)))
            for seq in range(pushed + 1, TEXTS + 2):
                assert (await stream.until("event")).event.seq == seq


async def test_a_process_that_is_stopped_and_goes_on(scene: Scene) -> None:
    """SIGSTOP: the kernel still takes some bytes, the program reads none. It goes on, is told of its end, resumes."""
    async with Device(scene.address, scene.token("flood-d"), "d") as sender:
        group = await _group(scene, "flood-d", "halted")
        async with scene.attack("a device stopped by SIGSTOP, 6 MB for it") as sighting:
            reader = await ReaderProcess.start(scene, "halted")
            try:
                reader.stop()
                await _flood(sender, group)
                async with asyncio.timeout(30):
                    while (await scene.vitals()).streams > 3:  # the pair's two and the sender's
                        await asyncio.sleep(0.1)
                reader.go_on()
                await reader.until_texts(TEXTS)
                assert reader.texts == [text[:40] for text in _texts()]
                assert len(reader.disconnects) == 1
                sighting.notes["disconnected by"] = reader.disconnects[0]
            finally:
                await reader.close()


async def test_peers_that_vanish(scene: Scene, long: bool) -> None:
    """Half-open connections: nothing comes any more, not even an end. Their streams end while TCP still believes in them."""
    async with scene.attack("20 connections whose peers vanished") as sighting, freezing_proxy(scene.server.port) as proxy:
        before, metrics = await scene.vitals(), await scene.metrics()
        heartbeats_missed = metrics.get(_DISCONNECTS % "HEARTBEAT_MISSED", 0)
        streams = [BareStream(proxy.address) for _ in range(20)]
        for number, stream in enumerate(streams):
            await stream.open(scene.token(f"vanishing-{number}"))
        proxy.freeze()
        frozen = await scene.vitals()
        assert frozen.streams == before.streams + 20
        async with asyncio.timeout(40):  # a keepalive of HTTP/2 alone would take 80 s, but for the native edge's first one
            while (vitals := await scene.vitals()).streams > before.streams or vitals.tasks > before.tasks:
                await asyncio.sleep(0.1)
        metrics = await scene.metrics()
        sighting.notes["by missed heartbeats"] = metrics.get(_DISCONNECTS % "HEARTBEAT_MISSED", 0) - heartbeats_missed
        sighting.notes["connections still open"] = vitals.descriptors - before.descriptors
        if long:  # HTTP/2's own keepalive finds it out in 80 s
            async with asyncio.timeout(120):
                while (await scene.vitals()).descriptors > before.descriptors + 2:
                    await asyncio.sleep(1)
        for stream in streams:
            await stream.close()


async def test_streams_without_a_hello(scene: Scene) -> None:
    async def wait(shared: grpc.aio.Channel) -> None:
        stream = BareStream(scene.address, shared_channel=shared)
        outcome = await stream.outcome()
        assert outcome.disconnect is not None
        assert outcome.disconnect.code == session_pb2.DISCONNECT_CODE_HELLO_TIMEOUT
        assert outcome.status == grpc.StatusCode.DEADLINE_EXCEEDED

    async with scene.attack("500 streams without a Hello"):
        channels = [channel(scene.address) for _ in range(10)]
        await asyncio.gather(*(wait(shared) for shared in channels for _ in range(50)))
        await asyncio.gather(*(shared.close() for shared in channels))


async def test_connections_that_come_byte_by_byte(scene: Scene) -> None:
    """Slowloris: 300 connections that never finish saying what they want, in three ways."""
    message = grpc_message(b"\x0a" + b"\x7f" * 500)
    beginnings = {
        "a preface": (b"", PREFACE),
        "a Hello": (preface(headers(1)), data(1, message)),
        "a unary call": (preface(headers(1, path="/chatgrpc.v1.ChatService/ListChats")), data(1, message)),
    }

    async def drip(peer: Http2Peer, beginning: bytes, rest: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await peer.send(beginning)
            for byte in rest[:15]:
                await asyncio.sleep(0.1)
                await peer.send(bytes((byte,)))

    async with scene.attack("300 connections that come byte by byte") as sighting:
        before = await scene.vitals()
        scripts = [script for script in beginnings.values() for _ in range(100)]
        peers = [await Http2Peer.connect(scene.server.port) for _ in scripts]
        await asyncio.gather(*(drip(peer, *script) for peer, script in zip(peers, scripts, strict=True)))
        opened = (await scene.vitals()).descriptors - before.descriptors
        assert opened >= 200, "the server has closed them, so they were no burden"
        sighting.notes["connections"] = opened
        await asyncio.gather(*(peer.close() for peer in peers))


async def _group(scene: Scene, owner: str, *members: str) -> str:
    async with Caller(scene.address, owner, scene.token(owner)) as caller:
        return await caller.create_group(*members)


async def _beat(stream: FrameStream) -> None:
    """Says once a second that the device is there."""
    while True:
        await asyncio.sleep(1)
        await stream.send_frames(heartbeat())


async def _flood(sender: Device, group: str, count: int = TEXTS, size: int = TEXT_BYTES) -> None:
    """Sends the texts, up to a hundred at a time."""
    await sender.until_held(group, 1)
    texts = _texts(count, size)
    for start in range(0, count, 100):
        answers = [await sender.post(sender.compose(group, text)) for text in texts[start : start + 100]]
        for answer in await asyncio.gather(*answers):
            assert answer.HasField("sent"), answer


def _texts(count: int = TEXTS, size: int = TEXT_BYTES) -> list[str]:
    return [f"{number:06} ".ljust(size, "x") for number in range(count)]


async def test_replies_that_nobody_reads(scene: Scene) -> None:
    """600 pages of half a megabyte, of calls of one user: as many are held as the user has places, and no more."""
    async with Caller(scene.address, "hoarder", scene.token("hoarder")) as hoarder:
        for _ in range(10):
            content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 50_000))
            reply = await hoarder.messages.SendMessage(
                message_service_pb2.SendMessageRequest(user_id="hoarder", content=content)
            )
    chat_id = reply.sent.chat_id
    request = message_service_pb2.ListMessagesRequest(chat_id=chat_id, page_size=100).SerializeToString()
    authorization = f"Bearer {scene.token('hoarder')}"
    async with scene.attack("600 replies that nobody reads", growth_max_mib=64, peak_growth_max_mib=128) as sighting:
        peers = [await Http2Peer.connect(scene.server.port) for _ in range(6)]
        for peer in peers:
            await peer.send(PREFACE, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))  # its streams have no window
            for stream in range(1, 200, 2):
                call = headers(stream, path="/chatgrpc.v1.MessageService/ListMessages", authorization=authorization)
                await peer.send(call, data(stream, grpc_message(request), END_STREAM))
        await asyncio.sleep(3)
        sighting.notes["MiB held"] = (await scene.vitals()).rss_bytes // MIB
        for peer in peers:
            await peer.close()
