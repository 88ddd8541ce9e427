"""What a client is told once, when it is made."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from chatgrpc.core.ids import is_device_id, is_user_id

from .wording import USER_ID_RULE

TokenProvider = Callable[[], Awaitable[str]]
"""Returns an access token that is valid now. Called before each connection and again before the token expires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Settings of one device.

    Raises:
        ValueError: a setting has a value that it cannot have.
    """

    address: str
    """Where the server is: `host:port`, or any gRPC target; or several nodes of one cluster, separated by commas. The client
    learns of further nodes from the server."""
    user_id: str
    """Whose device it is: the subject of the tokens."""
    data_dir: Path
    """Folder of this device's state, made if it does not exist. One process at a time may use it."""
    device_id: str = ""
    """Names the device among the user's. Empty: chosen at random when the folder is made, and kept in it."""
    device_name: str = ""
    """What the user calls it; the server keeps the first 64 bytes."""
    ephemeral: bool = False
    """The device is there for one task, as a job is whose folder is not kept. It gives way to others where the user has as many
    devices as allowed: then the session ends with `TooManyDevicesError`."""
    waits_for_token: bool = False
    """The token provider may be late: it gives another token some time after one has expired or was revoked, as a file does
    that something else keeps fresh. The client waits for that. Else it stops with `UnauthenticatedError` where the provider
    gives the refused token once more. A provider that raises is asked again, in either case."""
    tls: bool = False
    """Use TLS, trusting `tls_ca_file`, or the machine's certificates if there is none."""
    tls_ca_file: Path | None = None
    """Certificates (PEM) of the authorities that are trusted; implies `tls`."""
    replay_all: bool = False
    """On a new device: take every event the user may see, oldest first. Else begin with the next one, and history is read by
    pages when the user looks at it."""
    manual_ack: bool = False
    """An event is acknowledged, and taken off what comes again after a restart, only when `Client.acknowledge` says so."""
    outbox_messages_max: int = 10_000
    """Messages that may wait to be sent; `OutboxFullError` past it."""
    sends_in_flight_max: int = 64
    """Sends that may wait for an answer; fewer if the server allows fewer."""
    backoff_base_s: float = 0.25
    """Longest wait before the first reconnect; doubles with each failure."""
    backoff_cap_s: float = 30.0
    """Longest wait before any reconnect."""
    connect_timeout_s: float = 15.0
    """Longest time from the opening of a stream to the server's Welcome."""
    answer_timeout_s: float = 30.0
    """Longest time for which a stream owes an answer; then it is given up and everything is sent again on a new one."""
    refused_send_max_s: float = 8.0
    """A message that its node refused as unavailable for so long goes through another node, if one can take it."""
    move_interval_s: float = 15.0
    """Such a node is looked for no more often."""
    request_timeout_s: float = 15.0
    """Longest time for a request other than a send, reconnects included; `RequestTimeoutError` past it."""
    own_ack_delay_s: float = 1.0
    """How long the acknowledgement of the user's own events may wait for other traffic."""

    def __post_init__(self) -> None:
        if not is_user_id(self.user_id):
            raise ValueError(f"not a user id: {self.user_id!r} ({USER_ID_RULE})")
        if self.device_id and not is_device_id(self.device_id):
            raise ValueError(f"not a device id: {self.device_id!r} (1 to 64 letters, digits and _ . -)")
        if not all(re.fullmatch(r"\S+", address) for address in self.addresses):
            raise ValueError(f"not an address: {self.address!r} (host:port, or several separated by commas)")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that `address` names."""
        return tuple(address.strip() for address in self.address.split(","))

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca_file is not None
