"""The health service (grpc.health.v1): tells load balancers whether to send devices here.

Not the servicer of grpcio-health-checking: its watchers wait on one condition, whose lock each holds while it writes. So one
stranger who watches and reads nothing would keep all other watchers waiting, and whoever changes the status, which is a server
that is about to stop.
"""

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatgrpc.edge.errors import StatusError

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it comes without types
    """Says how each service is. No caller waits for another."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()

    def set(self, services: Iterable[str], *, serving: bool) -> None:
        """States how these services are from now on."""
        status = _Status.SERVING if serving else _Status.NOT_SERVING
        self._statuses |= dict.fromkeys(services, status)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """Says how a service is; an empty name is the server as a whole."""
        if request.service not in self._statuses:
            raise StatusError(grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN", "There is no such service. Health.List lists them.")
        return _Status(status=self._statuses[request.service])

    async def List(self, request: health_pb2.HealthListRequest, context: object) -> health_pb2.HealthListResponse:
        """Says how each service is."""
        statuses = {service: _Status(status=status) for service, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Says how a service is, and again whenever that changes; what passed while the caller did not read is left out."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != told:
                await context.write(_Status(status=status))
                told = status
            await changed.wait()
