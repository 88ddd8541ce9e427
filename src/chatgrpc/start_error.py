"""How a process says that it cannot start."""


class StartError(Exception):
    """The node cannot start, and the person who starts it can do something about it. The message says what."""
