"""How a call or a stream that failed is told so on the wire: a gRPC status that carries `google.rpc.ErrorInfo`.

The status code says what kind of failure it is, `ErrorInfo.reason` which one, for programs; the message is for people. Rich
errors travel as a `google.rpc.Status` in the trailer `grpc-status-details-bin` (https://grpc.io/docs/guides/error/).
"""

from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "chatgrpc"
"""`google.rpc.ErrorInfo.domain` of every error that we report."""

DETAILS_KEY = "grpc-status-details-bin"

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


class StatusError(Exception):
    """Ends a call with a status. Raised by a service, answered by the interceptor."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str] = _NO_METADATA) -> None:
        """Takes any code but OK.

        Args:
            code: the kind of failure.
            reason: which failure, UPPER_SNAKE_CASE; becomes `ErrorInfo.reason`.
            message: one sentence for a person: what happened and what to do next.
            metadata: more about it for programs, keys in lowerCamelCase; becomes `ErrorInfo.metadata`.
        """
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata


TOO_MANY_STRANGERS = StatusError(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", "Too many streams of this address are not let in yet. Try again."
)
"""How a stream is refused whose address has no place left for devices that are not let in."""


def trailers_of(
    code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str] = _NO_METADATA
) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the ErrorInfo of a status."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata))
    status = status_pb2.Status(code=code.value[0], message=message, details=[info])
    return ((DETAILS_KEY, status.SerializeToString()),)


def error_info_of(trailing_metadata: object) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo in the trailing metadata of a call, if there is one."""
    for key, value in trailing_metadata or ():  # type: ignore[attr-defined]
        if key != DETAILS_KEY:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info
    return None
