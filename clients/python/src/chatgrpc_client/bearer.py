"""What can be a token: gRPC sends nothing else in the header that carries one, and raises errors of its own."""

from .exceptions import TokenUnavailableError


def is_token(text: str) -> bool:
    """Whether it is one word of visible ASCII."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def checked_token(token: str) -> str:
    """The token that a provider gave.

    Raises:
        TokenUnavailableError: it is none.
    """
    if not is_token(token):
        raise TokenUnavailableError("what was given is no token, which is one word")
    return token
