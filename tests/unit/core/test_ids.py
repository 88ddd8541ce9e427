"""Identifiers: their forms, and what follows from what."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.ids import (
    SHARD_COUNT,
    direct_chat_id,
    group_chat_id,
    is_chat_id,
    is_device_id,
    is_user_id,
    message_id,
    self_chat_id,
    shard_of,
)

user_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}", fullmatch=True)


@given(user_ids, user_ids)
def test_a_direct_chat_has_one_id_from_either_side(user_id: str, other_user_id: str) -> None:
    chat_id = direct_chat_id(user_id, other_user_id)
    assert chat_id == direct_chat_id(other_user_id, user_id)
    assert is_chat_id(chat_id)
    assert chat_id[:2] == ("s." if user_id == other_user_id else "d.")


@given(user_ids, user_ids, user_ids, user_ids)
def test_different_people_have_different_direct_chats(a: str, b: str, c: str, d: str) -> None:
    assert (direct_chat_id(a, b) == direct_chat_id(c, d)) == ({a, b} == {c, d})


@given(user_ids, st.binary(min_size=16, max_size=16))
def test_a_group_id_follows_from_its_creator_and_request(creator: str, client_message_id: bytes) -> None:
    chat_id = group_chat_id(creator, client_message_id)
    assert is_chat_id(chat_id)
    assert chat_id.startswith("g.")
    assert chat_id == group_chat_id(creator, client_message_id)
    assert chat_id != group_chat_id(creator + "x", client_message_id)
    assert chat_id != group_chat_id(creator, bytes(16) if client_message_id != bytes(16) else bytes([1] * 16))


@pytest.mark.parametrize(
    ("chat_id", "shard"),
    [
        ("d.FBpM0kK2foLt9KeLtBjUCg", 295),
        ("s.K9gGyX8OAK8aH8Myj6djqQ", 79),
        ("g.gqX6n0qzb2JaBz9oTclIIQ", 11),
        ("g.AAAAAAAAAAAAAAAAAAAAAA", 485),
    ],
)
def test_shards_never_move(chat_id: str, shard: int) -> None:
    """Rows in deployed stores are found by these numbers: a change here is a migration."""
    assert shard_of(chat_id) == shard


def test_chat_ids_never_change() -> None:
    assert direct_chat_id("alice", "bob") == "d.FBpM0kK2foLt9KeLtBjUCg"
    assert self_chat_id("alice") == "s.K9gGyX8OAK8aH8Myj6djqQ"
    assert group_chat_id("alice", bytes(range(16))) == "g.gqX6n0qzb2JaBz9oTclIIQ"


@given(st.binary(min_size=16, max_size=16))
def test_every_chat_has_a_shard(client_message_id: bytes) -> None:
    assert 0 <= shard_of(group_chat_id("alice", client_message_id)) < SHARD_COUNT


@given(st.integers(0, 2**48 - 1), st.integers())
def test_a_message_id_is_a_uuid_of_version_7(now_ms: int, seed: int) -> None:
    value = message_id(now_ms, random.Random(seed))
    assert len(value) == 16
    assert int.from_bytes(value[:6], "big") == now_ms
    assert value[6] >> 4 == 7
    assert value[8] >> 6 == 0b10


def test_message_ids_are_random_where_they_may_be() -> None:
    source = random.Random(1)
    drawn = [int.from_bytes(message_id(0, source), "big") for _ in range(200)]
    ever_set, always_set = 0, (1 << 128) - 1
    for value in drawn:
        ever_set |= value
        always_set &= value
    fixed = 0x7 << 76 | 0b10 << 62
    assert always_set == fixed
    assert ever_set == ((1 << 80) - 1) & ~(0x8 << 76) & ~(0b01 << 62)


@pytest.mark.parametrize("text", ["alice", "A", "9", "a.b_c@d+e-f", "x" * 64])
def test_user_ids(text: str) -> None:
    assert is_user_id(text)


@pytest.mark.parametrize("text", ["", ".a", "-a", "@a", "a b", "a\n", "\na", "ä", "a\0", "x" * 65, "a/b"])
def test_not_user_ids(text: str) -> None:
    assert not is_user_id(text)


@pytest.mark.parametrize("text", ["phone", "_", "-.-", "x" * 64])
def test_device_ids(text: str) -> None:
    assert is_device_id(text)


@pytest.mark.parametrize("text", ["", "a b", "phone\n", "a@b", "x" * 65])
def test_not_device_ids(text: str) -> None:
    assert not is_device_id(text)


@pytest.mark.parametrize(
    "text", ["", "d.", "x." + "A" * 22, "d." + "A" * 21, "d." + "A" * 23, "d." + "A" * 21 + "=", "d." + "A" * 22 + "\n"]
)
def test_not_chat_ids(text: str) -> None:
    assert not is_chat_id(text)
