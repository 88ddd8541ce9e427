"""User ids of what an issuer calls its users.

Identity providers name people as they like: `auth0|64b7f0c1`, `system:serviceaccount:ci:bot`, `us-east-1:` and a UUID,
`o'neil@example.com`. A user id is 1 to 64 of `A-Z a-z 0-9 _ . @ + -`, a letter or digit first. The rules make one of the other,
and never the same of two different names:

- `as-is`: the name is the user id, or is refused.
- `escaped`: each byte (UTF-8) that a user id cannot hold, and `+` itself, is written as `+` and two hexadecimal digits:
  `auth0|64b7` is `auth0+7C64b7`. A name that begins with anything but a letter or digit gets `u+-` before it; one that would be
  longer than 64 characters is hashed. No escaped name holds `+-`, so neither is the id of another.
- `hashed`: `h+-` and the SHA-256 of the name, in 52 letters and digits: for names that others are not to see, such as e-mail
  addresses.
"""

import re
from base64 import b32encode
from hashlib import sha256

from chatgrpc.auth_settings import UserIdRule
from chatgrpc.core.ids import is_user_id

_ESCAPED = re.compile(rb"[^A-Za-z0-9_.@-]")
_ID_CHARACTERS_MAX = 64


def user_id_of(name: str, rule: UserIdRule) -> str | None:
    """The user id of whom the issuer calls `name`; None if the rule makes none of it."""
    if rule == "as-is":
        return name if is_user_id(name) else None
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return None
    if not encoded:
        return None
    return _hashed(encoded) if rule == "hashed" else _escaped(encoded)


def _escaped(name: bytes) -> str:
    escaped = _ESCAPED.sub(lambda found: b"+%02X" % found[0][0], name).decode()
    if not escaped[0].isalnum():
        escaped = f"u+-{escaped}"
    return escaped if len(escaped) <= _ID_CHARACTERS_MAX else _hashed(name)


def _hashed(name: bytes) -> str:
    return "h+-" + b32encode(sha256(name).digest()).decode().rstrip("=").lower()
