"""Secrets in addresses."""

from collections.abc import Iterator

import pytest

from chatgrpc import masking
from chatgrpc.masking import mask_addresses, mask_from_now_on, mask_value


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    masking._known.clear()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://u:s3cret@h:1/0", "redis://u:****@h:1/0"),
        ("redis://:s3cret@h", "redis://:****@h"),
        ("https://s3cret@h/keys", "https://****@h/keys"),
        ("redis://u:s3/cret@h", "redis://u:****@h"),
        ("redis://u:s3/cr?e#t@h", "redis://****"),
        ("redis://h/0?password=p@s3cret", "redis://****"),
        ("redis://h?db=1&password=s3cret", "redis://h?db=1&password=****"),
        ("https://h/keys?s3cret", "https://h/keys?****"),
        ("https://h/keys?a=s3cret&b=s3cret#s3cret", "https://h/keys?a=****&b=****#****"),
        ("cannot reach 'redis://h?password=s3cret': refused", "cannot reach 'redis://h?password=****': refused"),
        ("cannot reach 'redis://:pa's3cret@h/0': refused", "cannot reach 'redis://:****@h/0': refused"),
        ('at "redis://:<s3>cr"et@h", and more', 'at "redis://:****@h", and more'),
        ("'redis://h?password=pa's3cret': refused", "'redis://h?password=****': refused"),
        ("redis://h?password=ab'-s3cret", "redis://h?password=****"),
        ("ConfigError('redis://h?password=ab\".s3cret')", "ConfigError('redis://h?password=****')"),
        ("<https://h/keys> and bob@h", "<https://h/keys> and bob@h"),
        ("no address: password=s", "no address: password=s"),
        ("https://h/?", "https://h/?"),
        ("x" * 50 + "://u:s3cret@h", "x" * 50 + "://u:****@h"),
    ],
)
def test_what_may_be_secret_is_masked(text: str, masked: str) -> None:
    assert mask_addresses(text) == masked


@pytest.mark.parametrize("odd", ["'", '"', "<", ">", " ", "\n", "@", "://"])
def test_a_setting_is_one_address_whatever_its_secrets_are_made_of(odd: str) -> None:
    assert mask_value(f"redis://:pa{odd}s3cret@h/0") == "redis://:****@h/0"
    assert "s3cret" not in mask_value(f"redis://h/0?password=pa{odd}s3cret")
    assert "s3cret" not in mask_value(f"redis://h/0?pa{odd}s3cret#pa{odd}s3cret")


@pytest.mark.parametrize("odd", ["'", '"', "' ", " ", "\n", "@ ", "':", "')"])
def test_an_address_of_the_settings_is_masked_in_a_sentence_whatever_its_secrets_are_made_of(odd: str) -> None:
    for address in (f"redis://:pa{odd}s3cret@h", f"redis://h?password=pa{odd}s3cret"):
        mask_from_now_on(["redis://h", address])
        assert mask_addresses(f"ConfigError('{address}'): no") == f"ConfigError('{mask_value(address)}'): no"
        assert "s3cret" not in mask_addresses(f"ConfigError('{address}'): no")
