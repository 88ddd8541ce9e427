"""Words that more than one part of the client says."""

USER_ID_RULE = "1 to 64 letters, digits and _ . @ + -, the first a letter or digit"


def messages(count: int) -> str:
    """`1 message`, `2 messages`."""
    return f"{count} message" if count == 1 else f"{count} messages"
