"""Secrets in addresses."""

import pytest

from chatgrpc.masking import mask_addresses


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://u:s3cret@h:1/0", "redis://u:****@h:1/0"),
        ("redis://:s3cret@h", "redis://:****@h"),
        ("https://s3cret@h/keys", "https://****@h/keys"),
        ("redis://u:s3/cr?e#t@h", "redis://u:****@h"),
        ("redis://h?db=1&password=s3cret", "redis://h?db=1&password=****"),
        ("https://h/keys?s3cret", "https://h/keys?****"),
        ("https://h/keys?a=s3cret&b=s3cret#s3cret", "https://h/keys?a=****&b=****#****"),
        ("cannot reach 'redis://h?password=s3cret': refused", "cannot reach 'redis://h?password=****': refused"),
        ("no address: password=s", "no address: password=s"),
        ("https://h/?", "https://h/?"),
    ],
)
def test_what_may_be_secret_is_masked(text: str, masked: str) -> None:
    assert mask_addresses(text) == masked
