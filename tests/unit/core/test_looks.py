"""Two users who look at each other are shown it, as long as both do; nobody else is shown anything."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.looks import Look, Looks

USERS = ("alice", "bob", "carol")
DEVICES = tuple(f"{user_id}-{number}" for user_id in USERS for number in (1, 2))


def user_of(device: str) -> str:
    return device.partition("-")[0]


def test_who_is_looked_at_and_does_not_look_back_is_not_shown_nor_told() -> None:
    looks: Looks[str] = Looks()
    assert looks.look("phone", "alice", ["bob"]) == []
    assert looks.look("laptop", "bob", ["carol"]) == []
    assert looks.look_away("phone", "alice") == []


def test_both_are_told_when_the_second_looks_and_the_other_when_one_looks_away() -> None:
    looks: Looks[str] = Looks()
    looks.look("phone", "alice", ["bob"])
    told = looks.look("laptop", "bob", ["alice", "carol"])
    assert told == [Look("phone", "bob", True), Look("laptop", "alice", True)]
    assert looks.look_away("phone", "alice") == [Look("laptop", "alice", False)]
    assert looks.look_away("phone", "alice") == []
    assert looks.look_away("laptop", "bob") == []
    assert looks.pairs() == []


@given(st.lists(st.tuples(st.sampled_from(DEVICES), st.lists(st.sampled_from(USERS), max_size=3)), max_size=30))
def test_each_device_has_been_shown_who_looks_back_at_its_user(steps: list[tuple[str, list[str]]]) -> None:
    looks: Looks[str] = Looks()
    at: dict[str, set[str]] = {device: set() for device in DEVICES}
    shown: dict[str, set[str]] = {device: set() for device in DEVICES}
    for device, user_ids in steps:
        others = [user_id for user_id in user_ids if user_id != user_of(device)]
        at[device] = set(others)
        shown[device] &= at[device]  # what is off the screen is not shown
        for look in looks.look(device, user_of(device), others):
            (shown[look.looker].add if look.looks_back else shown[look.looker].discard)(look.user_id)
        for other in DEVICES:
            back = {user_of(device) for device in DEVICES if user_of(other) in at[device]}
            assert shown[other] == at[other] & back
    for device in DEVICES:
        looks.look_away(device, user_of(device))
    assert looks.pairs() == []
