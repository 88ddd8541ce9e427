"""UserService."""

import asyncio
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.edge import interceptors
from chatgrpc.edge.services.users import UserService
from chatgrpc.ports.accounts import Profile
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1.user_service_pb2 import GetUserRequest, UpdateProfileRequest, User
from tests.support.callers import Caller, code_of


async def test_a_user_without_a_profile_is_a_user_id(alice: Caller) -> None:
    reply = await alice.users.GetUser(GetUserRequest())
    assert reply.user == User(user_id="alice")


async def test_everyone_reads_a_profile(alice: Caller, bob: Caller) -> None:
    profile = User(user_id="alice", display_name="Alice", about="Éclair", picture_url="https://pictures.example/a")
    request = UpdateProfileRequest(display_name="Alice", about="Éclair", picture_url="https://pictures.example/a")
    assert (await alice.users.UpdateProfile(request)).user == profile
    assert (await alice.users.GetUser(GetUserRequest())).user == profile
    assert (await bob.users.GetUser(GetUserRequest(user_id="alice"))).user == profile
    assert (await bob.users.GetUser(GetUserRequest())).user == User(user_id="bob")


async def test_fields_not_set_stay_and_empty_ones_clear(alice: Caller) -> None:
    await alice.users.UpdateProfile(UpdateProfileRequest(display_name="Alice", about="here"))
    reply = await alice.users.UpdateProfile(UpdateProfileRequest(about="", picture_url="https://pictures.example/a"))
    expected = User(user_id="alice", display_name="Alice", picture_url="https://pictures.example/a")
    assert reply.user == expected
    assert (await alice.users.UpdateProfile(UpdateProfileRequest())).user == expected


async def test_updates_at_the_same_moment_keep_each_others_fields(alice: Caller) -> None:
    await asyncio.gather(
        alice.users.UpdateProfile(UpdateProfileRequest(display_name="Alice")),
        alice.users.UpdateProfile(UpdateProfileRequest(about="here")),
        alice.users.UpdateProfile(UpdateProfileRequest(picture_url="https://pictures.example/a")),
    )
    assert (await alice.users.GetUser(GetUserRequest())).user == User(
        user_id="alice", display_name="Alice", about="here", picture_url="https://pictures.example/a"
    )


async def test_an_update_that_waits_for_the_store_keeps_no_other_user_waiting() -> None:
    asked = asyncio.Event()

    class Profiles:
        async def get(self, user_id: str) -> Profile | None:
            if user_id == "alice":
                asked.set()
                await asyncio.Event().wait()
            return None

        async def put(self, profile: Profile) -> None:
            assert profile == Profile("bob", display_name="Bob")

    backend: Any = SimpleNamespace(limits=Limits(), profiles=Profiles())
    service = UserService(backend)

    def update_of(user_id: str, display_name: str) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(interceptors._claims.set, Claims(user_id, 0))
        updating: Any = service.UpdateProfile(UpdateProfileRequest(display_name=display_name), None)
        return asyncio.get_running_loop().create_task(updating, context=context)

    waiting = update_of("alice", "Alice")
    async with asyncio.timeout(60):
        await asked.wait()
        assert (await update_of("bob", "Bob")).user.display_name == "Bob"
    waiting.cancel()


@pytest.mark.parametrize("user_id", ["-x", "a b", "x" * 65, "é"])
async def test_get_user_refuses_what_is_no_user_id(alice: Caller, user_id: str) -> None:
    assert code_of(await alice.users.GetUser(GetUserRequest(user_id=user_id))) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("largest", "too_large"),
    [
        (UpdateProfileRequest(display_name="é" * 100), UpdateProfileRequest(display_name="é" * 101)),
        (UpdateProfileRequest(about="é" * 500), UpdateProfileRequest(about="é" * 501)),
        (
            UpdateProfileRequest(picture_url="https://p.example/".ljust(2_048, "x")),
            UpdateProfileRequest(picture_url="https://p.example/".ljust(2_049, "x")),
        ),
    ],
)
async def test_update_profile_has_limits(alice: Caller, largest: UpdateProfileRequest, too_large: UpdateProfileRequest) -> None:
    accepted = await alice.users.UpdateProfile(largest)
    assert accepted.HasField("user")
    assert code_of(await alice.users.UpdateProfile(too_large)) == "TOO_LARGE"
    assert (await alice.users.GetUser(GetUserRequest())).user == accepted.user
