"""A scripted server's word for whose the tokens are that it gets: a client asks before it calls anything else."""

from typing import Any

import grpc.aio

from chatgrpc.v1 import user_service_pb2, user_service_pb2_grpc


class _Users(user_service_pb2_grpc.UserServiceServicer):
    """Takes every token for one user's."""

    def __init__(self, user_id: str) -> None:
        self._user_id = user_id

    async def GetUser(self, request: user_service_pb2.GetUserRequest, context: Any) -> user_service_pb2.GetUserResponse:
        """Whose the token is."""
        return user_service_pb2.GetUserResponse(user=user_service_pb2.User(user_id=self._user_id))


def know_tokens(server: grpc.aio.Server, user_id: str) -> None:
    """Has the server say that every token is this user's."""
    servicer = _Users(user_id)  # type: ignore[abstract]  # all that is asked of it
    user_service_pb2_grpc.add_UserServiceServicer_to_server(servicer, server)
