"""The people of one test: users of their own on a server that other tests use too, and their devices."""

import itertools
from collections.abc import Sequence
from typing import Protocol

from tests.support.callers import Caller
from tests.support.device import Device, Held

BRIEF_LIVES_S = (2, 4, 8, 16, 32)
"""How long a token lives that is to run out in a test, one try after another: a busy machine may take longer to use it."""


class Served(Protocol):
    """Where people can go: one server, or the nodes of a cluster."""

    @property
    def addresses(self) -> Sequence[str]:
        """What devices dial, any of them."""
        ...

    def token(self, user_id: str, ttl_s: int = 3600, device_id: str | None = None) -> str:
        """A token that is accepted at every address, from this device only if one is named."""
        ...


class Cast:
    """Makes users, devices and callers, and closes them all when the test is over.

    Where there are several addresses, every stream of every device goes to the next one, and so does every unary call.
    """

    _turns = itertools.count()
    """Go on over all tests, so that the same test begins elsewhere in another run."""

    def __init__(self, server: Served, suffix: str) -> None:
        """`suffix` makes the users of this test other ones than those of the same name in other tests."""
        self.server = server
        self._suffix = suffix
        self._devices: list[Device] = []
        self._callers: dict[str, Caller] = {}

    def user(self, name: str) -> str:
        """The user id behind a name."""
        return f"{name}.{self._suffix}"

    def token(self, name: str, ttl_s: int = 3600, device_id: str | None = None) -> str:
        """A token of the user; for one device only, and gone with no other, if it is named."""
        return self.server.token(self.user(name), ttl_s, device_id)

    def device(self, name: str, device_id: str = "phone", held: Held | None = None, address: str = "") -> Device:
        """A device that is not connected yet; `address` leads elsewhere than to the server itself."""
        device = Device(address or self.server.addresses[0], self.token(name, device_id=device_id), device_id, held)
        device.user_id = self.user(name)
        if not address:
            device.next_address = self.next_address
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
            caller = self._callers[name] = Caller(self.server.addresses, self.user(name), self.token(name, device_id="caller"))
        return caller

    def next_address(self) -> str:
        """Where the next stream goes."""
        addresses = self.server.addresses
        return addresses[next(self._turns) % len(addresses)]

    async def group(self, owner: str, *others: str, title: str = "Friends") -> str:
        """Creates a group of users by their names; returns its chat id."""
        return await self.caller(owner).create_group(*map(self.user, others), title=title)

    async def close(self) -> None:
        """Closes every stream and channel."""
        for device in self._devices:
            await device.close()
        for caller in self._callers.values():
            await caller.__aexit__()
