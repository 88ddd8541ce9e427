"""The contracts of `ports.accounts`: profiles and devices."""

import asyncio

import pytest

from chatgrpc.ports.accounts import Device, DeviceRevokedError, Profile, TooManyDevicesError
from chatgrpc.ports.store import Store

DEVICES_MAX = 3


async def connect(store: Store, device_id: str, now_ms: int, name: str = "", user_id: str = "alice") -> Device:
    return await store.devices.connect(user_id, device_id, name, now_ms, DEVICES_MAX)


class TestProfiles:
    async def test_of_a_user_who_never_set_one_is_none(self, store: Store) -> None:
        assert await store.profiles.get("alice") is None

    async def test_the_last_one_counts(self, store: Store) -> None:
        await store.profiles.put(Profile("alice", "Alice", "about\0me", "https://example.org/a.png"))
        await store.profiles.put(Profile("bob", "Bob"))
        assert await store.profiles.get("alice") == Profile("alice", "Alice", "about\0me", "https://example.org/a.png")
        await store.profiles.put(Profile("alice", "", "\N{PILE OF POO}"))
        assert await store.profiles.get("alice") == Profile("alice", "", "\N{PILE OF POO}", "")
        assert await store.profiles.get("bob") == Profile("bob", "Bob")


class TestConnect:
    async def test_registers_a_device_on_its_first_connection(self, store: Store) -> None:
        device = Device("alice", "phone", "Phone \0", created_at_ms=100, connected_at_ms=100)
        assert await connect(store, "phone", 100, "Phone \0") == device
        assert await store.devices.list("alice") == [device]

    async def test_notes_the_time_on_every_connection_and_keeps_the_first_name(self, store: Store) -> None:
        await connect(store, "phone", 100, "Phone")
        device = Device("alice", "phone", "Phone", created_at_ms=100, connected_at_ms=200)
        assert await connect(store, "phone", 200, "Another") == device
        assert await store.devices.list("alice") == [device]

    async def test_refuses_a_new_device_past_the_limit_and_not_a_known_one(self, store: Store) -> None:
        for number in range(DEVICES_MAX):
            await connect(store, f"device{number}", number)
        with pytest.raises(TooManyDevicesError):
            await connect(store, "device9", 9)
        await connect(store, "device0", 10)
        await connect(store, "phone", 11, user_id="bob")
        assert [device.device_id for device in await store.devices.list("alice")] == ["device0", "device1", "device2"]

    async def test_a_revoked_device_makes_room_and_may_not_come_back(self, store: Store) -> None:
        for number in range(DEVICES_MAX):
            await connect(store, f"device{number}", number)
        await store.devices.revoke("alice", "device1")
        await connect(store, "device9", 9)
        with pytest.raises(DeviceRevokedError):
            await connect(store, "device1", 10)
        assert [device.device_id for device in await store.devices.list("alice")] == ["device0", "device2", "device9"]

    async def test_of_many_at_once_answers_each_for_itself(self, store: Store) -> None:
        await connect(store, "revoked", 0)
        await store.devices.revoke("alice", "revoked")
        names = ["device0", "device1", "revoked", "device2", "device3", "device0"]
        calls = [connect(store, name, number) for number, name in enumerate(names)]
        outcomes = await asyncio.gather(
            *calls, *(connect(store, "phone", 50, user_id=f"user{n}") for n in range(20)), return_exceptions=True
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Device, Device, DeviceRevokedError, Device, TooManyDevicesError, Device] + [Device] * 20
        assert [(d.device_id, d.created_at_ms, d.connected_at_ms) for d in await store.devices.list("alice")] == [
            ("device0", 0, 5),
            ("device1", 1, 1),
            ("device2", 3, 3),
        ]


class TestList:
    async def test_is_oldest_first(self, store: Store) -> None:
        for device_id, now_ms in (("b", 20), ("c", 10), ("a", 30)):
            await connect(store, device_id, now_ms)
        await connect(store, "c", 40)
        assert [device.device_id for device in await store.devices.list("alice")] == ["c", "b", "a"]

    async def test_of_an_unknown_user_is_empty(self, store: Store) -> None:
        assert await store.devices.list("alice") == []


class TestRename:
    async def test_gives_the_device_as_it_is_now(self, store: Store) -> None:
        await connect(store, "phone", 100, "Phone")
        await connect(store, "phone", 100, "Phone", user_id="bob")
        assert await store.devices.rename("alice", "phone", "Old phone") == Device("alice", "phone", "Old phone", 100, 100)
        assert (await connect(store, "phone", 200, "Phone")).name == "Old phone"
        assert (await store.devices.list("bob"))[0].name == "Phone"

    async def test_of_none_or_a_revoked_one_is_none(self, store: Store) -> None:
        assert await store.devices.rename("alice", "phone", "Phone") is None
        await connect(store, "phone", 100)
        await store.devices.revoke("alice", "phone")
        assert await store.devices.rename("alice", "phone", "Phone") is None


class TestRevoke:
    async def test_gives_the_device_as_it_was_and_takes_it_from_the_list(self, store: Store) -> None:
        device = await connect(store, "phone", 100, "Phone")
        other = await connect(store, "laptop", 100)
        assert await store.devices.revoke("alice", "phone") == device
        assert await store.devices.list("alice") == [other]

    async def test_of_none_or_a_revoked_one_is_none(self, store: Store) -> None:
        assert await store.devices.revoke("alice", "phone") is None
        await connect(store, "phone", 100)
        await store.devices.revoke("alice", "phone")
        assert await store.devices.revoke("alice", "phone") is None

    async def test_of_one_user_leaves_the_other_alone(self, store: Store) -> None:
        await connect(store, "phone", 100)
        bobs = await connect(store, "phone", 100, user_id="bob")
        await store.devices.revoke("alice", "phone")
        assert await store.devices.list("bob") == [bobs]
