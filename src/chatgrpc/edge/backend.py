"""What the unary services need of the node: the same owner, sessions and marks that the streams use."""

from typing import Protocol

from chatgrpc.core.limits import Limits
from chatgrpc.core.write import Write
from chatgrpc.ports.accounts import DeviceStore, ProfileStore
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1 import chat_pb2


class Backend(Protocol):
    """One node, as its unary services see it."""

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        ...

    @property
    def log(self) -> ChatReader:
        """The history. Views in it are as new as the last acknowledged change."""
        ...

    @property
    def profiles(self) -> ProfileStore:
        """The users' profiles."""
        ...

    @property
    def devices(self) -> DeviceStore:
        """The users' devices."""
        ...

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...

    async def submit(self, write: Write) -> chat_pb2.SendResult | chat_pb2.Error:
        """Hands a write to the chat's owner; returns when it is committed, or refused."""
        ...

    async def receipts(self, chat_id: str, user_ids: list[str]) -> list[chat_pb2.Receipt]:
        """The marks of these members of a chat, those not yet stored included; zeroes for who has none."""
        ...

    async def mark_read(self, user_id: str, chat_id: str, seq: int) -> chat_pb2.Receipt | chat_pb2.Error:
        """Raises a user's read mark (and delivered mark) to `seq`, or to the chat's head if that is less; tells who watches."""
        ...

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """Which of the user's devices have a live stream."""
        ...

    def claims_of(self, user_id: str) -> list[Claims]:
        """What the tokens say with which the user's streams on this node came, or which they showed last."""
        ...

    async def disconnect_revoked(self, user_id: str, device_id: str) -> None:
        """Ends the device's live stream, if it has one, with DISCONNECT_CODE_DEVICE_REVOKED, and those that came with tokens
        which its revocation made void."""
        ...
