"""UserService: who people are."""

import asyncio
from dataclasses import replace
from weakref import WeakValueDictionary

from chatgrpc.core.shape import check_picture_url
from chatgrpc.edge.backend import Backend
from chatgrpc.edge.interceptors import current_claims
from chatgrpc.edge.services.refusals import refused_by
from chatgrpc.edge.services.requests import checked_user_id, require_at_most
from chatgrpc.ports.accounts import Profile
from chatgrpc.v1 import user_service_pb2
from chatgrpc.v1.user_service_pb2 import GetUserRequest, GetUserResponse, UpdateProfileRequest, UpdateProfileResponse
from chatgrpc.v1.user_service_pb2_grpc import UserServiceServicer


class UserService(UserServiceServicer):
    """Reads and changes profiles. A user who never set one is a user id and nothing else: accounts are the issuer's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._updating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @refused_by(GetUserResponse)
    async def GetUser(self, request: GetUserRequest, context: object) -> GetUserResponse:
        """Reads a user's profile."""
        user_id = checked_user_id(request.user_id) if request.user_id else current_claims().user_id
        return GetUserResponse(user=_user(await self._profile(user_id)))

    @refused_by(UpdateProfileResponse)
    async def UpdateProfile(self, request: UpdateProfileRequest, context: object) -> UpdateProfileResponse:
        """Changes the caller's profile."""
        limits = self._backend.limits
        require_at_most(len(request.display_name), limits.display_name_chars_max, "Characters of display_name")
        require_at_most(len(request.about), limits.about_chars_max, "Characters of about")
        check_picture_url(request.picture_url, limits)
        changed = {field.name: value for field, value in request.ListFields()}
        caller = current_claims().user_id
        # Of two updates of different fields at the same moment, neither may undo the other; nobody waits for another user's.
        updating = self._updating.setdefault(caller, asyncio.Lock())
        async with updating:
            profile = replace(await self._profile(caller), **changed)
            await self._backend.profiles.put(profile)
        return UpdateProfileResponse(user=_user(profile))

    async def _profile(self, user_id: str) -> Profile:
        return await self._backend.profiles.get(user_id) or Profile(user_id)


def _user(profile: Profile) -> user_service_pb2.User:
    return user_service_pb2.User(
        user_id=profile.user_id,
        display_name=profile.display_name,
        about=profile.about,
        picture_url=profile.picture_url,
    )
