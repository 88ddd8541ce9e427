"""Which shards a node takes and gives away."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.tending import ShardOwner, Tending, wanted_owner

NODES = ("n1", "n2", "n3")
SHARDS = range(256)


def wanted_by(node_id: str, node_ids: tuple[str, ...] = NODES) -> list[int]:
    return [shard for shard in SHARDS if wanted_owner(node_ids, shard) == node_id]


def test_shards_spread_over_the_nodes_whatever_their_order() -> None:
    owned = [len(wanted_by(node_id)) for node_id in NODES]
    assert min(owned) > 256 / 3 / 2
    for order in permutations(NODES):
        assert [wanted_owner(order, shard) for shard in SHARDS] == [wanted_owner(NODES, shard) for shard in SHARDS]
    assert wanted_owner((), 1) == ""


@given(st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=8), st.integers(0, 1023))
def test_only_the_shards_of_a_node_that_comes_or_goes_move(node_ids: set[str], shard: int) -> None:
    everyone = tuple(sorted(node_ids))
    owner_id = wanted_owner(everyone, shard)
    for node_id in everyone:
        others = tuple(other for other in everyone if other != node_id)
        if node_id != owner_id:
            assert wanted_owner(others, shard) == owner_id


def test_takes_what_nobody_owns_and_should_be_its_own() -> None:
    tending = Tending("n1", 256)
    assert tending.to_take(NODES, {}, ()) == wanted_by("n1")


def test_leaves_alone_what_another_one_owns_or_should_own_or_what_it_holds() -> None:
    tending = Tending("n1", 256)
    first, second, *others = wanted_by("n1")
    assert tending.to_take(NODES, {first: ShardOwner("n2", 5)}, {second}) == others


def test_takes_again_what_the_coordinator_says_it_has() -> None:
    tending = Tending("n1", 256)
    theirs = wanted_by("n2")[0]
    assert theirs in tending.to_take(NODES, {theirs: ShardOwner("n1", 5)}, ()), "the answer to an earlier take was lost"
    assert tending.took(theirs, 5)
    assert theirs not in tending.to_take(NODES, {theirs: ShardOwner("n1", 5)}, ()), "given away, and the watch is behind"
    assert theirs in tending.to_take(NODES, {theirs: ShardOwner("n1", 6)}, ()), "taken once more since, unknowingly"


def test_an_old_answer_gives_nothing_back() -> None:
    tending = Tending("n1", 256)
    assert tending.took(3, 7)
    assert not tending.took(3, 7), "a repetition"
    assert not tending.took(3, 6)
    assert tending.took(3, 8)
    assert tending.took(4, 1), "another shard"


def test_gives_away_what_should_be_anothers_but_to_nobody_nothing() -> None:
    tending = Tending("n1", 256)
    held = [wanted_by("n1")[0], wanted_by("n2")[0]]
    assert tending.to_leave(NODES, held) == held[1:]
    assert tending.to_leave((), held) == []
    assert tending.to_leave(("n1",), held) == []


def test_who_should_own_a_shard_may_be_said_from_outside() -> None:
    tending = Tending("n1", 4)
    assert tending.to_take(NODES, {}, (), lambda node_ids, shard: "n1" if shard < 2 else "n2") == [0, 1]
    assert tending.to_leave(NODES, [0, 3], lambda node_ids, shard: "n1" if shard < 2 else "n2") == [3]
