"""User ids of what identity providers call their users."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.adapters.jwt.user_ids import user_id_of
from chatgrpc.auth_settings import UserIdRule
from chatgrpc.core.ids import is_user_id

RULES: tuple[UserIdRule, ...] = ("as-is", "escaped", "hashed")

NAMES = [
    "auth0|64b7f0c1",
    "google-oauth2|104169387236783748921",
    "us-east-1:8d7f3c1e-4b5a-4c1d-9e0f-1a2b3c4d5e6f",
    "system:serviceaccount:ci:bot",
    "f:8d7f3c1e-4b5a-4c1d-9e0f-1a2b3c4d5e6f:jane",
    "_service",
    "|pipe",
    "-",
    ".",
    "u+-_service",
    "u+2B-",
    "o'neil@example.com",
    "a+b@example.com",
    "a" * 64,
    "a" * 65,
    "|" * 22,
    "Жанна",
    "a\nb",
    " ",
    "h+-" + "a" * 52,
]


@pytest.mark.parametrize(
    ("name", "user_id"),
    [
        ("alice", "alice"),
        ("auth0|64b7f0c1", "auth0+7C64b7f0c1"),
        ("system:serviceaccount:ci:bot", "system+3Aserviceaccount+3Aci+3Abot"),
        ("_service", "u+-_service"),
        ("|pipe", "u+-+7Cpipe"),
        ("o'neil@example.com", "o+27neil@example.com"),
        ("a+b@example.com", "a+2Bb@example.com"),
        ("é", "u+-+C3+A9"),
        ("a" * 64, "a" * 64),
        ("a" * 65, "h+-mnjwdrelxhvlcqmy45xkrk37djawqxlk2yvksfdngaou6f7lblqa"),
    ],
)
def test_ids_stay_what_they_are(name: str, user_id: str) -> None:
    """People's chats are found by them: a change of the rule would take everybody's away."""
    assert user_id_of(name, "escaped") == user_id


@pytest.mark.parametrize("rule", RULES[1:])
def test_every_name_has_an_id_of_its_own(rule: UserIdRule) -> None:
    ids = [user_id_of(name, rule) for name in NAMES]
    assert all(user_id is not None and is_user_id(user_id) for user_id in ids)
    assert len(set(ids)) == len(NAMES)


@given(names=st.sets(st.text(alphabet="au+-_2B|C7h.\x00é", max_size=12) | st.text(max_size=70), min_size=2, max_size=2))
def test_of_two_names_no_two_ids_are_the_same(names: set[str]) -> None:
    for rule in RULES:
        ids = [user_id_of(name, rule) for name in names]
        made = [user_id for user_id in ids if user_id is not None]
        assert len(set(made)) == len(made)
        assert all(is_user_id(user_id) for user_id in made)


def test_a_name_that_is_a_user_id_stays_as_it_is() -> None:
    assert user_id_of("a+b@example.com", "as-is") == "a+b@example.com"
    assert user_id_of("auth0|64b7f0c1", "as-is") is None
    for rule in RULES:
        assert user_id_of("", rule) is None
        assert user_id_of("\ud800", rule) is None
