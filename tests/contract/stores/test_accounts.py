"""The contracts of `ports.accounts`: profiles and devices."""

import asyncio

import pytest

from chatgrpc.ports.accounts import REVOKED_KEPT_MAX, Device, DeviceRevokedError, Profile, Standing, TooManyDevicesError
from tests.contract.stores.engines import Engine

DEVICES_MAX = 3
NOW_MS = 1_700_000_000_000


async def connect(engine: Engine, device_id: str, now_ms: int, name: str = "", user_id: str = "alice") -> Device:
    return (await engine.devices.connect(user_id, device_id, name, now_ms, DEVICES_MAX)).device


class TestProfiles:
    async def test_of_a_user_who_never_set_one_is_none(self, engine: Engine) -> None:
        assert await engine.profiles.get("alice") is None

    async def test_the_last_one_counts(self, engine: Engine) -> None:
        await engine.profiles.put(Profile("alice", "Alice", "about\0me", "https://example.org/a.png"))
        await engine.profiles.put(Profile("bob", "Bob"))
        assert await engine.profiles.get("alice") == Profile("alice", "Alice", "about\0me", "https://example.org/a.png")
        await engine.profiles.put(Profile("alice", "", "\N{PILE OF POO}"))
        assert await engine.profiles.get("alice") == Profile("alice", "", "\N{PILE OF POO}", "")
        assert await engine.profiles.get("bob") == Profile("bob", "Bob")


class TestConnect:
    async def test_registers_a_device_on_its_first_connection(self, engine: Engine) -> None:
        device = Device("alice", "phone", "Phone \0", created_at_ms=100, connected_at_ms=100)
        assert await connect(engine, "phone", 100, "Phone \0") == device
        assert await engine.devices.list("alice") == [device]

    async def test_notes_the_time_on_every_connection_and_keeps_the_first_name(self, engine: Engine) -> None:
        await connect(engine, "phone", 100, "Phone")
        device = Device("alice", "phone", "Phone", created_at_ms=100, connected_at_ms=200)
        assert await connect(engine, "phone", 200, "Another") == device
        assert await engine.devices.list("alice") == [device]

    async def test_refuses_a_new_device_past_the_limit_and_not_a_known_one(self, engine: Engine) -> None:
        for number in range(DEVICES_MAX):
            await connect(engine, f"device{number}", number)
        with pytest.raises(TooManyDevicesError):
            await connect(engine, "device9", 9)
        await connect(engine, "device0", 10)
        await connect(engine, "phone", 11, user_id="bob")
        assert [device.device_id for device in await engine.devices.list("alice")] == ["device0", "device1", "device2"]

    async def test_a_revoked_device_makes_room_and_may_not_come_back(self, engine: Engine) -> None:
        for number in range(DEVICES_MAX):
            await connect(engine, f"device{number}", number)
        await engine.devices.revoke("alice", "device1", NOW_MS)
        await connect(engine, "device9", 9)
        with pytest.raises(DeviceRevokedError):
            await connect(engine, "device1", 10)
        assert [device.device_id for device in await engine.devices.list("alice")] == ["device0", "device2", "device9"]

    async def test_of_many_at_once_answers_each_for_itself(self, engine: Engine) -> None:
        await connect(engine, "revoked", 0)
        await engine.devices.revoke("alice", "revoked", NOW_MS)
        names = ["device0", "device1", "revoked", "device2", "device3", "device0"]
        calls = [connect(engine, name, number) for number, name in enumerate(names)]
        outcomes = await asyncio.gather(
            *calls, *(connect(engine, "phone", 50, user_id=f"user{n}") for n in range(20)), return_exceptions=True
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Device, Device, DeviceRevokedError, Device, TooManyDevicesError, Device] + [Device] * 20
        assert [(d.device_id, d.created_at_ms, d.connected_at_ms) for d in await engine.devices.list("alice")] == [
            ("device0", 0, 5),
            ("device1", 1, 1),
            ("device2", 3, 3),
        ]


class TestEphemeral:
    """Devices that give way."""

    async def connect(self, engine: Engine, device_id: str, now_ms: int, *, ephemeral: bool = True) -> str:
        """Returns which one gave way."""
        return (await engine.devices.connect("alice", device_id, "", now_ms, DEVICES_MAX, ephemeral=ephemeral)).gave_way

    async def listed(self, engine: Engine) -> set[str]:
        return {device.device_id for device in await engine.devices.list("alice")}

    async def test_the_one_that_connected_longest_ago_gives_way_to_any_new_one(self, engine: Engine) -> None:
        for number, device_id in enumerate(("job1", "job2", "job3")):
            assert await self.connect(engine, device_id, number) == ""
        assert await self.connect(engine, "job1", 10) == "", "it is known"
        assert await self.connect(engine, "phone", 11, ephemeral=False) == "job2"
        assert await self.connect(engine, "job4", 12) == "job3"
        assert await self.connect(engine, "laptop", 13, ephemeral=False) == "job1"
        assert await self.listed(engine) == {"phone", "job4", "laptop"}

    async def test_those_that_come_while_the_clock_is_set_back_do_not_give_way_to_each_other(self, engine: Engine) -> None:
        for number, device_id in enumerate(("idle1", "idle2", "idle3")):
            await self.connect(engine, device_id, NOW_MS + number)
        for number, gave_way in enumerate(("idle1", "idle2", "idle3", "job0")):
            assert await self.connect(engine, f"job{number}", NOW_MS - 3_600_000 + number) == gave_way
        await self.connect(engine, "job1", NOW_MS - 3_600_000)
        assert await self.connect(engine, "job4", NOW_MS - 3_600_000) == "job2"

    async def test_it_counts_what_a_device_is_stored_as_and_not_what_it_says_now(self, engine: Engine) -> None:
        for number, device_id in enumerate(("job1", "job2", "job3")):
            await self.connect(engine, device_id, NOW_MS + number)
        await self.connect(engine, "job1", NOW_MS - 3_600_000, ephemeral=False)
        assert await self.connect(engine, "phone", NOW_MS - 3_600_000, ephemeral=False) == "job2"
        await self.connect(engine, "phone", NOW_MS - 3_600_000)
        times_ms = {device.device_id: device.connected_at_ms for device in await engine.devices.list("alice")}
        assert times_ms["phone"] == NOW_MS - 3_600_000, "it lasts, whatever it says now"

    async def test_the_time_of_a_lasting_device_is_that_of_the_clock(self, engine: Engine) -> None:
        await self.connect(engine, "job", NOW_MS)
        await self.connect(engine, "phone", NOW_MS - 3_600_000, ephemeral=False)
        times_ms = {device.device_id: device.connected_at_ms for device in await engine.devices.list("alice")}
        assert times_ms == {"job": NOW_MS, "phone": NOW_MS - 3_600_000}

    async def test_lasting_devices_give_way_to_none(self, engine: Engine) -> None:
        for number in range(DEVICES_MAX):
            await self.connect(engine, f"device{number}", number, ephemeral=False)
        for ephemeral in (True, False):
            with pytest.raises(TooManyDevicesError):
                await self.connect(engine, "another", 9, ephemeral=ephemeral)
        await self.connect(engine, "device0", 10)
        with pytest.raises(TooManyDevicesError):
            await self.connect(engine, "another", 11)

    async def test_one_that_gave_way_may_come_again_and_one_that_was_revoked_may_not(self, engine: Engine) -> None:
        for number, device_id in enumerate(("job1", "job2", "job3", "job4")):
            await self.connect(engine, device_id, number)
        assert await self.connect(engine, "job1", 10) == "job2"
        await engine.devices.revoke("alice", "job3", NOW_MS)
        assert await self.connect(engine, "phone", 11, ephemeral=False) == ""
        with pytest.raises(DeviceRevokedError):
            await self.connect(engine, "job3", 12)
        assert await self.listed(engine) == {"job4", "job1", "phone"}

    async def test_many_that_come_at_once_leave_as_many_as_allowed(self, engine: Engine) -> None:
        await self.connect(engine, "phone", 0, ephemeral=False)
        gave_way = await asyncio.gather(*(self.connect(engine, f"job{number}", number) for number in range(1, 9)))
        left = await self.listed(engine)
        assert "phone" in left
        assert len(left) == DEVICES_MAX
        assert left | set(filter(None, gave_way)) == {"phone", *(f"job{number}" for number in range(1, 9))}


class TestList:
    async def test_is_oldest_first(self, engine: Engine) -> None:
        for device_id, now_ms in (("b", 20), ("c", 10), ("a", 30)):
            await connect(engine, device_id, now_ms)
        await connect(engine, "c", 40)
        assert [device.device_id for device in await engine.devices.list("alice")] == ["c", "b", "a"]

    async def test_of_an_unknown_user_is_empty(self, engine: Engine) -> None:
        assert await engine.devices.list("alice") == []


class TestRename:
    async def test_gives_the_device_as_it_is_now(self, engine: Engine) -> None:
        await connect(engine, "phone", 100, "Phone")
        await connect(engine, "phone", 100, "Phone", user_id="bob")
        assert await engine.devices.rename("alice", "phone", "Old phone") == Device("alice", "phone", "Old phone", 100, 100)
        assert (await connect(engine, "phone", 200, "Phone")).name == "Old phone"
        assert (await engine.devices.list("bob"))[0].name == "Phone"

    async def test_of_none_or_a_revoked_one_is_none(self, engine: Engine) -> None:
        assert await engine.devices.rename("alice", "phone", "Phone") is None
        await connect(engine, "phone", 100)
        await engine.devices.revoke("alice", "phone", NOW_MS)
        assert await engine.devices.rename("alice", "phone", "Phone") is None


class TestRevoke:
    async def test_gives_the_device_as_it_was_and_takes_it_from_the_list(self, engine: Engine) -> None:
        device = await connect(engine, "phone", 100, "Phone")
        other = await connect(engine, "laptop", 100)
        assert await engine.devices.revoke("alice", "phone", NOW_MS) == device
        assert await engine.devices.list("alice") == [other]

    async def test_of_none_or_a_revoked_one_is_none(self, engine: Engine) -> None:
        await connect(engine, "phone", 100)
        assert await engine.devices.revoke("alice", "laptop", NOW_MS) is None
        await engine.devices.revoke("alice", "phone", NOW_MS)
        assert await engine.devices.revoke("alice", "phone", NOW_MS) is None

    async def test_of_one_user_leaves_the_other_alone(self, engine: Engine) -> None:
        await connect(engine, "phone", 100)
        bobs = await connect(engine, "phone", 100, user_id="bob")
        await engine.devices.revoke("alice", "phone", NOW_MS)
        assert await engine.devices.list("bob") == [bobs]


class TestStanding:
    async def test_of_a_user_from_whom_nothing_was_taken_is_empty(self, engine: Engine) -> None:
        await connect(engine, "phone", 100)
        assert await engine.devices.standing("alice") == Standing()

    async def test_names_revoked_devices_and_until_when_tokens_are_void(self, engine: Engine) -> None:
        for device_id in ("phone", "laptop", "tablet"):
            await connect(engine, device_id, 100)
        await engine.devices.revoke("alice", "phone", NOW_MS + 5)
        assert await engine.devices.standing("alice") == Standing(NOW_MS + 5, frozenset({"phone"}))
        await engine.devices.revoke("alice", "laptop", NOW_MS + 9)
        assert await engine.devices.standing("alice") == Standing(NOW_MS + 9, frozenset({"phone", "laptop"}))
        assert await engine.devices.standing("bob") == Standing()

    async def test_tokens_that_are_void_stay_so_whatever_another_nodes_clock_says(self, engine: Engine) -> None:
        for device_id in ("phone", "laptop"):
            await connect(engine, device_id, 100)
        await engine.devices.revoke("alice", "phone", NOW_MS)
        await engine.devices.revoke("alice", "laptop", NOW_MS - 60_000)
        assert (await engine.devices.standing("alice")).not_before_ms == NOW_MS + 1, "each revocation is seen to be another one"

    async def test_an_id_that_is_not_registered_is_revoked_since_tokens_may_name_it(self, engine: Engine) -> None:
        assert await engine.devices.revoke("alice", "laptop", NOW_MS) is None
        assert await engine.devices.standing("alice") == Standing(0, frozenset({"laptop"})), "the id may have been a slip"
        assert await engine.devices.list("alice") == []
        assert await engine.devices.rename("alice", "laptop", "Laptop") is None
        with pytest.raises(DeviceRevokedError):
            await connect(engine, "laptop", 100)

    async def test_of_one_that_is_revoked_voids_the_tokens_that_were_issued_since(self, engine: Engine) -> None:
        await connect(engine, "phone", 100)
        await engine.devices.revoke("alice", "phone", NOW_MS)
        assert await engine.devices.revoke("alice", "phone", NOW_MS + 5) is None
        assert await engine.devices.standing("alice") == Standing(NOW_MS + 5, frozenset({"phone"}))

    async def test_ids_that_were_never_registered_do_not_bring_back_a_device(self, engine: Engine) -> None:
        for device_id in ("phone", "tablet"):
            await connect(engine, device_id, 100)
            await engine.devices.revoke("alice", device_id, NOW_MS)
        for number in range(REVOKED_KEPT_MAX + 1):
            await engine.devices.revoke("alice", f"nobody{number:03}", NOW_MS + number)
        await engine.devices.revoke("alice", "phone", NOW_MS + REVOKED_KEPT_MAX + 1)
        named = {f"nobody{number:03}" for number in range(3, REVOKED_KEPT_MAX + 1)}
        assert (await engine.devices.standing("alice")).revoked == named | {"phone", "tablet"}

    @pytest.mark.parametrize("step_ms", [1, 0, -1], ids=["as time goes", "at once", "while the clock is set back"])
    async def test_remembers_the_devices_that_were_revoked_last_and_no_more(self, engine: Engine, step_ms: int) -> None:
        for number in range(REVOKED_KEPT_MAX + 3):
            await connect(engine, f"device{number:03}", number)
            await engine.devices.revoke("alice", f"device{number:03}", NOW_MS + step_ms * number)
        standing = await engine.devices.standing("alice")
        assert standing.revoked == {f"device{number:03}" for number in range(3, REVOKED_KEPT_MAX + 3)}
        assert standing.not_before_ms == NOW_MS + REVOKED_KEPT_MAX + 2
        await connect(engine, "device000", 500)
        with pytest.raises(DeviceRevokedError):
            await connect(engine, "device003", 500)
