"""`host:port`, as people write it."""

import pytest

from chatgrpc.addresses import join_address, split_address, split_addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("chat-1.example_x:65535", "chat-1.example_x", 65_535),
        ("[::1]:15551", "::1", 15_551),
        (" [fe80::1]:7 ", "fe80::1", 7),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert join_address(host, port) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:0", "host:65536", "::1:5", "[]:5", "[h]:5", "a b:5", "u@h:5"]
)
def test_all_else_is_not(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be host:port"):
        split_address(text)


def test_the_one_of_a_list_that_is_wrong_is_told() -> None:
    assert split_addresses("a:1, [::1]:2") == [("a", 1), ("::1", 2)]
    with pytest.raises(ValueError, match=r"^number 2 of the list must be host:port"):
        split_addresses("a:1,b,c:3")


def test_brackets_are_put_once() -> None:
    assert join_address("[::1]", 5) == join_address("::1", 5) == "[::1]:5"
