"""What every failed call must carry, checked on the client's side of any test that calls a server."""

from collections.abc import Awaitable, Callable

import grpc

from chatgrpc.edge.errors import ERROR_DOMAIN, error_info_of

Call = grpc.aio.UnaryUnaryCall[object, object]


class ErrorInfoRequired(grpc.aio.UnaryUnaryClientInterceptor):
    """Fails the test if a unary call ends with a status other than OK that does not explain itself.

    CANCELLED is left out: it is made on the client's side.
    """

    async def intercept_unary_unary(  # type: ignore[override]
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, object], Awaitable[Call]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: object,
    ) -> Call:
        """Waits for the call's end and looks at its trailers."""
        call = await continuation(client_call_details, request)
        code = await call.code()
        if code not in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}:
            info = error_info_of(await call.trailing_metadata())
            method = client_call_details.method
            assert info is not None, f"{method} ended with {code} and without an ErrorInfo: {await call.details()}"
            assert info.domain == ERROR_DOMAIN, f"{method}: ErrorInfo of the domain {info.domain!r}"
            assert info.reason == info.reason.upper() != "", f"{method}: the reason is {info.reason!r}"
            assert await call.details(), f"{method} ended with {code} and without a sentence for a person"
        return call
