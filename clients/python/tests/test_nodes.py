"""The choice of a node."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from chatgrpc.v1.node_service_pb2 import Node
from chatgrpc_client.nodes import LISTED_MAX, LISTED_TRIES_MAX, Nodes

SEEDS = range(50)


def node(name: str, streams: int = 0, *, draining: bool = False) -> Node:
    return Node(node_id=name, address=f"{name}:15551", draining=draining, streams=streams)


def connected(seed: int, *configured: str) -> Nodes:
    """A client that is live at one of these nodes."""
    nodes = Nodes([f"{name}:15551" for name in configured], random.Random(seed))
    nodes.live()
    return nodes


def visited(nodes: Nodes, count: int) -> list[str]:
    """Where it goes as one after the other fails."""
    hosts = []
    for _ in range(count):
        nodes.leave()
        hosts.append(nodes.address.removesuffix(":15551"))
    return hosts


def test_the_only_address_is_tried_again_and_again() -> None:
    nodes = Nodes(["unix:/run/chat.sock"])
    assert [nodes.address, *visited(nodes, 3)] == ["unix:/run/chat.sock"] * 4


def test_clients_begin_all_over_the_configured_addresses() -> None:
    begun = Counter(connected(seed, "a", "b", "c").address for seed in range(300))
    assert set(begun) == {"a:15551", "b:15551", "c:15551"}
    assert min(begun.values()) > 60


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_list_each_configured_address_has_its_turn_before_one_comes_again(seed: int) -> None:
    nodes = connected(seed, "a", "b", "c")
    first = nodes.address.removesuffix(":15551")
    hosts = [first, *visited(nodes, 30)]
    assert set(hosts[:3]) == {"a", "b", "c"}
    assert all(here != there for here, there in pairwise(hosts)), "never the one that just failed"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_listed_node_is_chosen_that_does_not_drain_and_was_not_just_left(seed: int) -> None:
    nodes = connected(seed, "a")
    nodes.listed([node("a"), node("b", 10), node("c", 20), node("d", draining=True)])
    assert visited(nodes, 1) == ["b"], "of two, the one with fewer streams"
    nodes.live()
    nodes.listed([node("a", draining=True), node("b"), node("c", 20), node("d", draining=True)])
    assert visited(nodes, 1) == ["c"]


def test_load_evens_out() -> None:
    """Each of many clients moves by what it was told before any of them moved."""
    loads = {"b": 0, "c": 1000, "d": 1000, "e": 2000}
    chosen: Counter[str] = Counter()
    for seed in range(600):
        nodes = connected(seed, "a")
        nodes.listed([node("a"), *(node(name, streams) for name, streams in loads.items())])
        chosen.update(visited(nodes, 1))
    assert chosen["e"] == 0
    assert chosen["b"] == pytest.approx(300, abs=60), "half of all pairs have the emptiest node in them; not all go there"
    assert chosen["c"] == pytest.approx(150, abs=60)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_old_list_is_given_up_for_the_configured_addresses(seed: int) -> None:
    nodes = connected(seed, "balancer")
    nodes.listed([node(f"gone{n}") for n in range(100)])
    nodes.leave()
    nodes.live()  # at one of the listed
    hosts = visited(nodes, LISTED_TRIES_MAX + 1)
    assert all(host.startswith("gone") for host in hosts[:-1])
    assert hosts[-1] == "balancer"
    assert visited(nodes, 1)[0].startswith("gone"), "there is nothing else left to try"


@pytest.mark.parametrize("seed", SEEDS)
def test_when_all_failed_all_are_tried_again_but_not_the_last_first(seed: int) -> None:
    nodes = connected(seed, "a", "b")
    nodes.listed([node("a"), node("b"), node("c"), node("d", draining=True)])
    hosts = visited(nodes, 40)
    assert set(hosts) == {"a", "b", "c"}
    assert all(here != there for here, there in pairwise(hosts))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_failed_is_forgiven_once_a_session_was_live(seed: int) -> None:
    nodes = connected(seed, "a", "b")
    assert set(visited(nodes, 2)) == {"a", "b"}
    nodes.live()
    assert set(visited(nodes, 2)) == {"a", "b"}


def test_a_single_node_is_not_known_by_another_name_than_it_was_reached_by() -> None:
    nodes = connected(0, "chat.example")
    nodes.listed([node("127.0.0.1")])
    assert visited(nodes, 3) == ["chat.example"] * 3


def test_the_last_node_of_a_cluster_is_not_forgotten() -> None:
    nodes = connected(0, "a")
    nodes.listed([node("a"), node("b")])
    assert visited(nodes, 1) == ["b"]
    nodes.live()
    nodes.listed([node("b")])
    assert visited(nodes, 4) == ["a", "b", "a", "b"]


def test_processes_behind_one_address_are_one_place_to_go() -> None:
    nodes = connected(0, "a")
    nodes.listed([Node(node_id=f"n{n}", address="a:15551", draining=n == 0) for n in range(4)])
    assert visited(nodes, 2) == ["a", "a"]


@pytest.mark.parametrize("address", ["", "nowhere", "unix:/tmp/evil", "dns:///b:15551", "a b:1", "b:15551/x", "b:123456"])
def test_what_is_no_address_is_passed_over(address: str) -> None:
    nodes = connected(0, "a")
    nodes.listed([node("b"), node("c"), Node(node_id="odd", address=address)])
    assert set(visited(nodes, 20)) == {"a", "b", "c"}


@pytest.mark.parametrize("address", ["[::1]:15551", "10.0.0.1:15551", "chat-0.chat.svc:15551"])
def test_what_is_an_address_is_gone_to(address: str) -> None:
    nodes = connected(0, "a")
    nodes.listed([node("a", 5), Node(node_id="new", address=address)])
    nodes.leave()
    assert nodes.address == address


def test_a_list_is_kept_up_to_a_limit() -> None:
    nodes = connected(0, "a")
    nodes.listed(node(f"n{n}", 0 if n >= LISTED_MAX else 1) for n in range(LISTED_MAX + 100))
    hosts = visited(nodes, 2 * LISTED_MAX)
    assert len(set(hosts)) == LISTED_MAX + 1


def test_another_node_is_named_and_not_gone_to() -> None:
    nodes = connected(1, "a")
    assert nodes.another() is None
    nodes.listed([node("a"), node("b", draining=True)])
    assert nodes.another() is None, "one that drains is none"
    nodes.listed([node("a"), node("b"), node("c")])
    assert nodes.another() in {"b:15551", "c:15551"}
    assert nodes.address == "a:15551"


def test_nodes_that_were_passed_over_are_named_when_all_were() -> None:
    nodes = connected(1, "a")
    nodes.listed([node("a"), node("b"), node("c")])
    named = []
    for _ in range(4):
        address = nodes.another()
        assert address is not None
        named.append(address)
        nodes.pass_over(address)
    assert set(named[:2]) == set(named[2:]) == {"b:15551", "c:15551"}
    nodes.go_to(named[0])
    assert nodes.address == named[0]
