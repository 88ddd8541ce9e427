"""Page tokens: where the next page of a list begins, opaque to clients.

A token carries a position and a digest of what it belongs to (the list, the chat, the order, the caller), so one that was
changed, cut or taken to another list is refused instead of giving a wrong page. It is no secret and grants nothing: what a
page may show is decided anew each time.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

from chatgrpc.core.refusal import RefusedError
from chatgrpc.v1 import chat_pb2

_DIGEST_BYTES = 10
_TOKEN_CHARS_MAX = 256
"""More than the longest position takes; what is longer is not decoded."""


def issue_page_token(position: str, *belongs_to: str) -> str:
    """Makes the token of the page that begins at `position` in the list that `belongs_to` names."""
    digest = hashlib.sha256("\0".join((*belongs_to, position)).encode()).digest()[:_DIGEST_BYTES]
    return urlsafe_b64encode(digest + position.encode()).decode().rstrip("=")


def redeem_page_token(token: str, *belongs_to: str) -> str:
    """Reads the position out of a token.

    Raises:
        RefusedError: INVALID_ARGUMENT; `issue_page_token` never made it for this list.
    """
    if len(token) > _TOKEN_CHARS_MAX:
        raise _not_issued()
    try:
        position = urlsafe_b64decode(token + "=" * (-len(token) % 4))[_DIGEST_BYTES:].decode()
    except ValueError:
        position = ""
    if issue_page_token(position, *belongs_to) != token:
        raise _not_issued()
    return position


def redeem_seq_token(token: str, *belongs_to: str) -> int:
    """Reads the position out of a token of a list whose positions are seqs; raises like `redeem_page_token`."""
    position = redeem_page_token(token, *belongs_to)
    try:
        return int(position)
    except ValueError:
        raise _not_issued() from None


def _not_issued() -> RefusedError:
    return RefusedError(
        chat_pb2.ERROR_CODE_INVALID_ARGUMENT,
        "page_token is not one of this list: hand over next_page_token unchanged, or leave it empty for the first page.",
    )
