"""The people of one test: users of their own on a server that other tests use too, and their devices."""

from tests.support.callers import Caller
from tests.support.device import Device, Held
from tests.support.server import ServerProcess


class Cast:
    """Makes users, devices and callers, and closes them all when the test is over."""

    def __init__(self, server: ServerProcess, suffix: str) -> None:
        """`suffix` makes the users of this test other ones than those of the same name in other tests."""
        self.server = server
        self._suffix = suffix
        self._devices: list[Device] = []
        self._callers: dict[str, Caller] = {}

    def user(self, name: str) -> str:
        """The user id behind a name."""
        return f"{name}.{self._suffix}"

    def token(self, name: str, ttl_s: int = 3600) -> str:
        """A token of the user."""
        return self.server.token(self.user(name), ttl_s)

    def device(self, name: str, device_id: str = "phone", held: Held | None = None, address: str = "") -> Device:
        """A device that is not connected yet; `address` leads elsewhere than to the server itself."""
        device = Device(address or self.server.address, self.token(name), device_id, held)
        device.user_id = self.user(name)
        self._devices.append(device)
        return device

    async def online(self, name: str, device_id: str = "phone", held: Held | None = None) -> Device:
        """A device that is connected and has all that its user may see."""
        device = self.device(name, device_id, held)
        await device.connect()
        await device.synced()
        return device

    def caller(self, name: str) -> Caller:
        """The user as a caller of the unary services."""
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = Caller(self.server.address, self.user(name), self.token(name))
        return caller

    async def group(self, owner: str, *others: str, title: str = "Friends") -> str:
        """Creates a group of users by their names; returns its chat id."""
        return await self.caller(owner).create_group(*map(self.user, others), title=title)

    async def close(self) -> None:
        """Closes every stream and channel."""
        for device in self._devices:
            await device.close()
        for caller in self._callers.values():
            await caller.__aexit__()
