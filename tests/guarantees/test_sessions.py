"""Who may hold a stream, and for how long: one per device, not a revoked one, as long as the token lives."""

import asyncio
import contextlib
import time

import grpc
import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import chat_pb2, session_pb2, session_pb2_grpc
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest, RevokeDeviceRequest
from tests.support.cast import BRIEF_LIVES_S, Cast
from tests.support.checker import check_held
from tests.support.device import TIMEOUT_S, Device, DisconnectedError


def code_of(ended: DisconnectedError) -> str:
    """The name of the disconnect code, without its prefix."""
    assert ended.disconnect is not None, ended.status
    return session_pb2.DisconnectCode.Name(ended.disconnect.code).removeprefix("DISCONNECT_CODE_")


async def refused(device: Device) -> str:
    """The code with which the server does not let a device in."""
    with pytest.raises(DisconnectedError) as ended:
        await device.connect()
    return code_of(ended.value)


async def test_a_revoked_device_is_disconnected_and_never_comes_back(cast: Cast) -> None:
    phone, laptop = await cast.online("alice"), await cast.online("alice", "laptop")
    devices = cast.caller("alice").devices
    revoked = await devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    assert revoked.device.online
    assert code_of(await phone.until_ended()) == "DEVICE_REVOKED"
    for _ in range(2):
        assert await refused(phone) == "DEVICE_REVOKED"
    assert [device.device_id for device in (await devices.ListDevices(ListDevicesRequest())).devices] == ["laptop"]
    await laptop.send(laptop.user_id, "the other device goes on")


@pytest.mark.embedded_only("the node with the stream hears of it a moment after the answer; see tests/cluster")
async def test_a_revoked_device_is_sent_nothing_any_more(cast: Cast) -> None:
    """What is committed behind the answer of the revocation is not pushed to it."""
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(bob.user_id, "before")).chat_id
    await bob.until_held(chat_id, 2)
    await cast.caller("bob").devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    await alice.send(chat_id, "after")
    assert code_of(await bob.until_ended()) == "DEVICE_REVOKED"
    assert bob.held.texts(chat_id) == ["before"]


async def test_a_second_stream_of_a_device_takes_the_place_of_the_first(cast: Cast) -> None:
    alice, first = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(first.user_id, "one")).chat_id
    await first.until_held(chat_id, 2)
    second = await cast.online("bob", held=first.held)
    assert code_of(await first.until_ended()) == "REPLACED"
    await alice.send(chat_id, "two")
    await second.until_held(chat_id, 3)
    check_held(second.held, await cast.caller("bob").log(chat_id))


async def test_of_many_streams_of_a_device_opened_at_once_one_stays(cast: Cast) -> None:
    streams = [cast.device("alice") for _ in range(8)]
    await asyncio.gather(*(stream.connect() for stream in streams), return_exceptions=True)
    async with asyncio.timeout(TIMEOUT_S):
        while sum(stream.is_open for stream in streams) > 1:  # another node hears of it a moment later
            await asyncio.sleep(0.01)
    (last,) = (stream for stream in streams if stream.is_open)
    assert {code_of(stream.endings[-1]) for stream in streams if stream is not last} == {"REPLACED"}
    await last.send(last.user_id, "it works")


async def test_what_a_half_closed_stream_had_sent_is_committed_and_answered(cast: Cast) -> None:
    """As a one-shot caller sends it: a Hello, three messages, and END_STREAM at once."""
    alice, bob = cast.device("alice"), await cast.online("bob")
    hello = session_pb2.Hello(device_id="once", token=cast.token("alice"))
    frames = [session_pb2.ClientFrame(request_id=1, hello=hello)]
    for number in range(3):
        frames.append(alice.compose(bob.user_id, f"{number}"))
        frames[-1].request_id = number + 2
    async with grpc.aio.insecure_channel(cast.server.addresses[0]) as channel:
        call = session_pb2_grpc.SessionServiceStub(channel).Connect()
        await call.write(session_pb2.ConnectRequest(frames=frames))
        await call.done_writing()
        answers = [frame async for response in call for frame in response.frames]
        assert await call.code() is grpc.StatusCode.OK
    assert [frame.request_id for frame in answers if frame.HasField("sent")] == [2, 3, 4]
    assert answers[-1].disconnect.code == session_pb2.DISCONNECT_CODE_INPUT_ENDED
    chat_id = next(frame.sent.chat_id for frame in answers if frame.HasField("sent"))
    await bob.until_held(chat_id, 4)
    assert bob.held.texts(chat_id) == ["0", "1", "2"]


async def test_a_late_hello_does_not_end_the_newer_stream_of_its_device(cast: Cast) -> None:
    """Its client gave up on it; the stream that it opened then has the higher number, on the same node or another."""
    newer = cast.device("alice")
    newer.connection_number = 8
    await newer.connect()
    late = cast.device("alice", held=newer.held)
    late.connection_number = 7
    with contextlib.suppress(DisconnectedError):
        await late.connect()
    assert code_of(await late.until_ended()) == "REPLACED"
    await newer.heartbeat()
    await newer.send(newer.user_id, "it is not ended")
    last = cast.device("alice", held=newer.held)
    last.connection_number = 9
    await last.connect()
    assert code_of(await newer.until_ended()) == "REPLACED"


async def test_devices_of_other_users_may_have_the_same_name(cast: Cast) -> None:
    alice, bob = await cast.online("alice", "phone"), await cast.online("bob", "phone")
    for device in (alice, bob):
        await device.heartbeat()


async def test_a_stream_ends_with_its_token(cast: Cast) -> None:
    alice = cast.device("alice")
    for ttl_s in BRIEF_LIVES_S:
        alice.token = cast.token("alice", ttl_s)
        with contextlib.suppress(DisconnectedError):
            welcome = await alice.connect()
            assert abs(welcome.token_expires_at_ms - welcome.server_time_ms) <= ttl_s * 1000
            break
    ended = await alice.until_ended()
    assert time.time() * 1000 >= welcome.token_expires_at_ms
    assert code_of(ended) == "UNAUTHENTICATED"
    assert ended.disconnect is not None
    assert "expired" in ended.disconnect.message


async def test_a_token_refreshed_in_band_keeps_the_stream(cast: Cast) -> None:
    alice = cast.device("alice")
    for ttl_s in BRIEF_LIVES_S:
        alice.token = cast.token("alice", ttl_s)
        with contextlib.suppress(DisconnectedError):
            welcome = await alice.connect()
            refreshed = await alice.refresh(cast.token("alice", ttl_s=3600))
            break
    assert refreshed.token_refreshed.token_expires_at_ms > welcome.token_expires_at_ms + 3_000_000
    while time.time() * 1000 <= welcome.token_expires_at_ms + 200:
        await asyncio.sleep(0.1)
    await alice.send(alice.user_id, "past the first token's end")


@pytest.mark.parametrize("bad", ["another's", "not a token", "forged", "expired"])
async def test_a_bad_refresh_is_refused_and_the_stream_goes_on(cast: Cast, bad: str) -> None:
    alice = await cast.online("alice")
    header, claims, signature = cast.token("alice").split(".")
    tokens = {
        "another's": cast.token("bob"),
        "not a token": "x",
        "forged": ".".join((header, claims, signature[::-1])),
        "expired": cast.token("alice", ttl_s=1),
    }
    if bad == "expired":
        await asyncio.sleep(2)
    answer = await alice.refresh(tokens[bad])
    assert answer.error.code == chat_pb2.ERROR_CODE_TOKEN_INVALID
    await alice.send(alice.user_id, "goes on")


async def test_a_device_without_a_valid_token_is_not_let_in(cast: Cast) -> None:
    alice = cast.device("alice")
    for token in ("", "x", cast.token("alice")[:-4] + "AAAA"):
        alice.token = token
        assert await refused(alice) == "UNAUTHENTICATED"


# Ephemeral devices.


async def test_devices_of_jobs_give_way_to_each_other_and_to_those_that_last(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    jobs = []
    devices_max = Limits().devices_per_user_max
    for number in range(devices_max + 2):
        job = cast.device("alice", f"job-{number}")
        job.ephemeral = True
        await job.connect(session_pb2.START_AT_HEAD)
        assert (await job.send(bob.user_id, f"{number} is done")).seq == number + 2
        jobs.append(job)
    ended = await jobs[0].until_ended()
    assert ended.disconnect is not None
    assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES
    laptop = await cast.online("alice", "laptop")
    chat_id = (await laptop.send(bob.user_id, "all is done")).chat_id
    for device in (alice, laptop, bob):
        await device.until_held(chat_id, devices_max + 4)
    devices = (await cast.caller("alice").devices.ListDevices(ListDevicesRequest())).devices
    assert len(devices) == devices_max
    assert {"phone", "laptop"} <= {device.device_id for device in devices}


async def test_of_an_ephemeral_device_the_server_keeps_no_cursor(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(bob.user_id, "one")).chat_id
    job = cast.device("alice", "job")
    job.ephemeral = True
    await job.connect()
    await job.until_held(chat_id, 2)
    await job.heartbeat()
    await job.close()
    again = cast.device("alice", "job")
    again.ephemeral = True
    await again.connect()
    await again.until_held(chat_id, 2)
    assert set(again.held.events[chat_id]) == {1, 2}
