"""Places that are shared, and whom a peer counts as."""

import grpc
import pytest

from chatgrpc.edge.errors import StatusError
from chatgrpc.edge.shares import Shares, address_of


def test_a_holder_gets_so_many_and_no_more_until_one_is_back() -> None:
    shares = Shares(per_holder_max=2)
    assert [shares.take("alice") for _ in range(3)] == [True, True, False]
    assert shares.take("bob")
    shares.give_back("alice")
    assert shares.take("alice")


def test_all_together_get_no_more_than_there_are() -> None:
    shares = Shares(per_holder_max=2, total_max=3)
    assert [shares.take(holder) for holder in ("a", "a", "b", "c")] == [True, True, True, False]


def test_a_place_is_given_back_whatever_happens() -> None:
    shares = Shares(per_holder_max=1)
    with pytest.raises(ZeroDivisionError), shares.place("alice"):
        raise ZeroDivisionError
    with shares.place("alice"), pytest.raises(StatusError) as refused, shares.place("alice"):
        pass
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert shares.take("alice")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:50000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:50000", "192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::/64"),
        ("unix:/run/chat", "unix:/run/chat"),
    ],
)
def test_a_peer_counts_as_its_address(peer: str, address: str) -> None:
    assert address_of(peer) == address
