"""Checks that requests of several services share. Each returns the checked value or raises `RefusedError`."""

import secrets
from typing import Literal, Protocol

from chatgrpc.core.ids import CLIENT_MESSAGE_ID_BYTES, is_chat_id, is_device_id, is_user_id
from chatgrpc.core.refusal import RefusedError
from chatgrpc.v1 import chat_pb2


def require(condition: bool, message: str) -> None:
    """Refuses with INVALID_ARGUMENT unless the condition holds."""
    if not condition:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, message)


def require_at_most(size: int, size_max: int, what: str) -> None:
    """Refuses with TOO_LARGE what passes its limit; `what` names field and unit."""
    if size > size_max:
        raise RefusedError(chat_pb2.ERROR_CODE_TOO_LARGE, f"{what}: {size} is too large, at most {size_max} are allowed.")


def checked_chat_id(chat_id: str) -> str:
    """A chat id by its form."""
    require(is_chat_id(chat_id), "chat_id is not a chat id: take it from ChatService.ListChats or from an event.")
    return chat_id


def checked_user_id(user_id: str) -> str:
    """A user id by its form."""
    require(is_user_id(user_id), "user_id is not a user id: 1 to 64 letters, digits and _ . @ + -")
    return user_id


def checked_device_id(device_id: str) -> str:
    """A device id by its form."""
    require(is_device_id(device_id), "device_id is not a device id: take it from DeviceService.ListDevices.")
    return device_id


def checked_page_size(page_size: int, default: int, page_size_max: int) -> int:
    """A page size: 0 is the default, more than the most is cut to it."""
    require(page_size >= 0, "page_size is negative: leave it out or set it to the number wanted.")
    return min(page_size or default, page_size_max)


class KeyedRequest(Protocol):
    """A request with an optional `WriteKey key`."""

    @property
    def key(self) -> chat_pb2.WriteKey:
        """The key, empty if there is none."""
        ...

    def HasField(self, field_name: Literal["key"], /) -> bool:
        """As protobuf defines it."""
        ...


def new_client_message_id() -> bytes:
    """An id for a write whose caller gave none."""
    return secrets.token_bytes(CLIENT_MESSAGE_ID_BYTES)


def write_key(request: KeyedRequest) -> tuple[bytes, int | None]:
    """The request's `client_message_id` and `seen_seq`; without a key a new id, which cannot be a repetition."""
    if not request.HasField("key"):
        return new_client_message_id(), None
    client_message_id = request.key.client_message_id
    require(
        len(client_message_id) == CLIENT_MESSAGE_ID_BYTES,
        f"key.client_message_id has {len(client_message_id)} bytes: make {CLIENT_MESSAGE_ID_BYTES} random bytes once "
        "per request and keep them for every try, or leave key out.",
    )
    return client_message_id, request.key.seen_seq
