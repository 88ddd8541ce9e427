"""A device has one stream in the whole cluster, and none once it is revoked, whichever nodes it and the revocation come to."""

import asyncio
import itertools
from functools import partial

import pytest

from chatgrpc.v1 import device_service_pb2
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest, RevokeDeviceRequest
from tests.cluster.support_people import People, code_of, until
from tests.support.callers import Caller
from tests.support.checker import check_held
from tests.support.device import Device, DisconnectedError

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

STREAMS = 9
ROUNDS = 10


async def test_a_device_that_goes_on_to_another_node_leaves_no_stream_behind(people: People) -> None:
    """Between any two of the nodes, while others write to it."""
    alice, bob = await people.online("alice"), await people.online_at(people.nodes[0], "bob")
    chat_id = (await alice.send(bob.user_id, "0")).chat_id
    await bob.until_held(chat_id, 2)
    for number, (before, after) in enumerate(itertools.permutations(people.nodes, 2), 1):
        first = await people.online_at(before, "bob", held=bob.held)
        await first.until_held(chat_id, number + 1)
        second = await people.online_at(after, "bob", held=first.held)
        assert code_of(await first.until_ended()) == "REPLACED"
        await alice.send(chat_id, f"{number}")
        await second.until_held(chat_id, number + 2)
        await second.close()
    check_held(bob.held, await people.caller("alice").log(chat_id))


async def test_of_many_streams_opened_at_once_at_all_nodes_one_stays(people: People) -> None:
    alice = await people.online("alice")
    for round_ in range(ROUNDS):
        streams = [people.device_at(people.nodes[number % 3], "bob") for number in range(STREAMS)]
        await asyncio.gather(*(stream.connect() for stream in streams), return_exceptions=True)

        await until(partial(one_is_open, streams))
        (last,) = (stream for stream in streams if stream.is_open)
        assert {code_of(stream.endings[-1]) for stream in streams if stream is not last} == {"REPLACED"}
        sent = await alice.send(last.user_id, f"{round_}")
        await last.until_held(sent.chat_id, sent.seq)
        await last.heartbeat()
        await last.close()


async def test_a_device_that_is_revoked_through_one_node_is_cut_off_at_another_and_let_in_nowhere(people: People) -> None:
    for here, there in itertools.permutations(people.nodes, 2):
        name = f"alice-{here.port}-{there.port}"
        phone = await people.online_at(here, name)
        async with people.caller_at(there, name) as caller:
            assert [device.online for device in await devices_of(caller)] == [True]
            revoked = await caller.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
        assert revoked.device.online
        assert code_of(await phone.until_ended()) == "DEVICE_REVOKED"
        for node in people.nodes:
            with pytest.raises(DisconnectedError) as refused:
                await people.device_at(node, name).connect()
            assert code_of(refused.value) == "DEVICE_REVOKED"


async def test_a_device_that_is_revoked_while_it_connects_is_cut_off(people: People) -> None:
    """It may have passed the door of its node before the revocation, and be known to nobody else yet."""
    here, there, _ = people.nodes
    for number in range(ROUNDS):
        phone = await people.online_at(here, f"alice{number}")
        await phone.close()
        async with people.caller_at(there, f"alice{number}") as caller:
            await devices_of(caller)  # the call that counts finds its connection open
            revocation = caller.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
            _, revoked = await asyncio.gather(phone.connect(), revocation, return_exceptions=True)
            assert not isinstance(revoked, BaseException), revoked
        assert code_of(await phone.until_ended()) == "DEVICE_REVOKED"


async def test_a_list_of_devices_says_which_are_connected_to_any_node(people: People) -> None:
    online = [await people.online_at(node, "alice", f"device-{number}") for number, node in enumerate(people.nodes)]
    await online[1].close()

    async def told(caller: Caller) -> bool:
        found = {device.device_id: device.online for device in await devices_of(caller)}
        return found == {"device-0": True, "device-1": False, "device-2": True}

    for node in people.nodes:
        async with people.caller_at(node, "alice") as caller:
            await until(partial(told, caller))


async def one_is_open(streams: list[Device]) -> bool:
    """All others have ended."""
    return sum(stream.is_open for stream in streams) == 1


async def devices_of(caller: Caller) -> list[device_service_pb2.Device]:
    """The user's devices."""
    return list((await caller.devices.ListDevices(ListDevicesRequest())).devices)
