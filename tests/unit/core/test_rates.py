"""How often a user may do what reaches others unasked."""

from chatgrpc.core.limits import Limits, Rate
from chatgrpc.core.rates import Deed, Rates

LIMITS = Limits(additions_rate=Rate(5, 1_000), groups_rate=Rate(2, 10_000), bots=frozenset({"bot"}), bots_factor=10)
AT_MS = 1_000_000


def test_as_many_as_the_bucket_holds_and_then_one_an_interval() -> None:
    rates = Rates(LIMITS)
    assert [rates.count("eve", {Deed.ADD: 1}, AT_MS) for _ in range(5)] == [0] * 5
    assert rates.count("eve", {Deed.ADD: 1}, AT_MS) == 1_001
    assert rates.count("eve", {Deed.ADD: 1}, AT_MS + 999) > 0
    assert rates.count("eve", {Deed.ADD: 1}, AT_MS + 1_000) == 0
    assert rates.count("eve", {Deed.ADD: 1}, AT_MS + 1_000) > 0, "what is refused is not counted, what is done is"


def test_who_asks_how_long_to_wait_has_nothing_counted() -> None:
    rates = Rates(LIMITS)
    assert [rates.wait_ms("eve", {Deed.ADD: 5}, AT_MS) for _ in range(3)] == [0, 0, 0]
    assert rates.count("eve", {Deed.ADD: 5}, AT_MS) == 0
    assert rates.wait_ms("eve", {Deed.ADD: 1}, AT_MS) == 1_001


def test_users_and_deeds_have_their_own() -> None:
    rates = Rates(LIMITS)
    assert rates.count("eve", {Deed.ADD: 5}, AT_MS) == 0
    assert rates.count("eve", {Deed.CREATE: 1}, AT_MS) == 0
    assert rates.count("alice", {Deed.ADD: 5}, AT_MS) == 0


def test_all_of_a_deed_or_nothing() -> None:
    rates = Rates(LIMITS)
    assert rates.count("eve", {Deed.ADD: 5}, AT_MS) == 0
    assert rates.count("eve", {Deed.CREATE: 1, Deed.ADD: 1}, AT_MS) > 0
    assert [rates.count("eve", {Deed.CREATE: 1}, AT_MS) for _ in range(2)] == [0, 0], "the group was not counted"


def test_more_at_once_than_the_bucket_holds_is_paid_for_afterwards() -> None:
    rates = Rates(LIMITS)
    assert rates.count("eve", {Deed.ADD: 8}, AT_MS) == 0
    assert rates.count("eve", {Deed.ADD: 1}, AT_MS) == 4_001
    assert rates.count("eve", {Deed.ADD: 1}, AT_MS + 4_000) == 0


def test_g7_the_users_remembered_are_bounded() -> None:
    rates = Rates(LIMITS, users_max=2)
    for user_id in ("eve", "alice", "eve", "bob"):
        assert rates.count(user_id, {Deed.ADD: 1}, AT_MS) == 0
    assert rates.count("eve", {Deed.ADD: 4}, AT_MS) > 0, "she was here lately"
    assert rates.count("alice", {Deed.ADD: 5}, AT_MS) == 0


def test_a_bot_does_it_so_many_times_more_often() -> None:
    rates = Rates(LIMITS)
    assert rates.count("bot", {Deed.CREATE: 20}, 0) == 0
    assert rates.count("bot", {Deed.CREATE: 1}, 0) == 1_001
    assert rates.count("bot", {Deed.CREATE: 1}, 1_001) == 0
    assert rates.count("alice", {Deed.CREATE: 2}, 0) == 0
    assert rates.count("alice", {Deed.CREATE: 1}, 0) == 10_001
