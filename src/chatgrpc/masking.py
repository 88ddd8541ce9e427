"""Secrets in addresses: a password, a token in place of a user, values of a query. What is shown or logged hides them."""

import re
from collections.abc import Iterable
from typing import Final

MASK: Final = "****"

_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)"  # bounded, or a run of letters takes the square of its length
_ADDRESS = re.compile(_SCHEME + r"(?P<rest>(?:[^\s@]*@)*(?:[^\s'\"<>]|['\"<>](?![\s:,)]|$))+)")
"""One in a sentence. A quotation mark ends it where the sentence goes on, and is else part of a secret that was not escaped."""
_VALUE = re.compile(_SCHEME + r"(?P<rest>.+)", re.DOTALL)
_HARMLESS = frozenset({"db", "protocol", "ssl_ca_certs", "ssl_cert_reqs"})
"""Parameters of an address of Redis whose values are worth seeing."""

_known: dict[str, str] = {}
"""Addresses of the settings, masked, by what they are."""


def mask_from_now_on(addresses: Iterable[str]) -> None:
    """Has these masked wherever they stand: of one in a sentence nobody can tell where it ends, if a secret holds a blank."""
    _known.clear()
    _known.update((address, masked) for address in addresses if (masked := mask_value(address)) != address)


def mask_addresses(text: str) -> str:
    """The text with what may be secret in its addresses replaced; names of users and of parameters stay."""
    for address, masked in _known.items():
        text = text.replace(address, masked)
    return _ADDRESS.sub(_masked, text) if "://" in text else text


def mask_value(value: str) -> str:
    """The same for a text that is one address and nothing else: it goes on to the end, whatever characters it holds."""
    return _VALUE.sub(_masked, value)


def _masked(found: re.Match[str]) -> str:
    # The last @, wherever it is: a password may hold characters that should have been escaped.
    login, at, rest = found["rest"].rpartition("@")
    if "?" in login or "#" in login:  # or it is the query that holds the @, and the address says not which
        return f"{found['scheme']}{MASK}"
    place, hash_mark, fragment = rest.partition("#")
    place, question_mark, query = place.partition("?")
    parameters = "&".join(map(_masked_parameter, query.split("&")))
    return "".join(
        (
            found["scheme"],
            _masked_login(login),
            at,
            place,
            question_mark,
            parameters,
            hash_mark,
            MASK if fragment else "",
        )
    )


def _masked_login(login: str) -> str:
    name, colon, _ = login.partition(":")
    return f"{name}:{MASK}" if colon else MASK if login else ""


def _masked_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if name in _HARMLESS or not parameter:
        return parameter
    return f"{name}={MASK}" if equals and value else MASK
