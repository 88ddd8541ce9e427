"""The table of disconnects: why a stream ends, what the device does next, and how it looks on the wire.

The range of a code says what to do, so that a client needs no table of its own: 100-199 reconnect at once and resume,
200-299 reconnect after a delay, 300-399 stop until something changes.
"""

from dataclasses import dataclass
from typing import TypeAlias

from chatgrpc.v1 import session_pb2 as pb

Code: TypeAlias = pb.DisconnectCode.ValueType


@dataclass(frozen=True, slots=True)
class Ending:
    """How a disconnect code ends the gRPC call."""

    status: str
    """Name of the `grpc.StatusCode`."""
    message: str
    """For people: what happened and what to do next."""
    reconnect_after_ms: int = 0


ENDINGS: dict[Code, Ending] = {
    pb.DISCONNECT_CODE_SHUTTING_DOWN: Ending("UNAVAILABLE", "This node stops. Reconnect and resume."),
    pb.DISCONNECT_CODE_MAX_AGE: Ending("UNAVAILABLE", "The stream reached its greatest age. Reconnect and resume."),
    pb.DISCONNECT_CODE_HEARTBEAT_MISSED: Ending(
        "DEADLINE_EXCEEDED",
        "Nothing was heard from the device for two and a half heartbeat intervals. Reconnect and resume; send a Heartbeat "
        "every Welcome.heartbeat_interval_ms.",
    ),
    pb.DISCONNECT_CODE_INPUT_ENDED: Ending(
        "OK", "The device closed its half of the stream, and what it sent is answered. Keep it open to be sent events."
    ),
    pb.DISCONNECT_CODE_OVERLOADED: Ending("RESOURCE_EXHAUSTED", "The server has more than it can take. Try later.", 2_000),
    pb.DISCONNECT_CODE_SLOW_READER: Ending(
        "RESOURCE_EXHAUSTED", "The device did not read its stream for too long. Reconnect and resume when it can.", 1_000
    ),
    pb.DISCONNECT_CODE_UNAVAILABLE: Ending("UNAVAILABLE", "The store or the key server cannot be reached. Try later.", 1_000),
    pb.DISCONNECT_CODE_HELLO_TIMEOUT: Ending(
        "DEADLINE_EXCEEDED", "No Hello came in time. Reconnect and send one first.", 1_000
    ),
    pb.DISCONNECT_CODE_INTERNAL: Ending("INTERNAL", "The server met a defect of its own; it is logged. Try later.", 2_000),
    pb.DISCONNECT_CODE_UNAUTHENTICATED: Ending("UNAUTHENTICATED", "The token is not valid. Get a new one."),
    pb.DISCONNECT_CODE_DEVICE_REVOKED: Ending(
        "PERMISSION_DENIED", "The user revoked this device. Forget its data; a new device id may connect."
    ),
    pb.DISCONNECT_CODE_REPLACED: Ending("ABORTED", "The same device opened another stream; this one is over."),
    pb.DISCONNECT_CODE_TOO_MANY_DEVICES: Ending(
        "RESOURCE_EXHAUSTED", "The user has as many devices as allowed. Revoke one with DeviceService.RevokeDevice."
    ),
    pb.DISCONNECT_CODE_MALFORMED: Ending("INVALID_ARGUMENT", "These bytes are not a ConnectRequest within the limits."),
    pb.DISCONNECT_CODE_PROTOCOL_VIOLATION: Ending("FAILED_PRECONDITION", "This frame is not allowed here."),
}
"""Every code, with its ending."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One stream's end."""

    code: Code
    message: str = ""
    """More precise than the table's, where there is more to say."""
    reason: str = ""
    """`ErrorInfo.reason`; the code's own name if empty."""
    reconnect_after_ms: int = 0
    """Longer than the table's, where that is needed."""

    def frame(self) -> pb.ServerFrame:
        """The last frame of the stream."""
        ending = ENDINGS[self.code]
        return pb.ServerFrame(
            disconnect=pb.Disconnect(
                code=self.code,
                message=self.message or ending.message,
                reconnect_after_ms=max(self.reconnect_after_ms, ending.reconnect_after_ms),
                reason=self.reason,
            )
        )

    def status(self) -> tuple[str, str, str]:
        """The call's end: name of the status code, `ErrorInfo.reason`, message."""
        ending = ENDINGS[self.code]
        name = pb.DisconnectCode.Name(self.code).removeprefix("DISCONNECT_CODE_")
        return ending.status, self.reason or name, self.message or ending.message
