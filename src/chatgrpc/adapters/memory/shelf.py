"""What the ports of one memory store share: whether it is open."""

from chatgrpc.ports.errors import StoreUnavailableError


class Shelf:
    """Open until it is closed."""

    def __init__(self) -> None:
        self._closed = False

    def check_open(self) -> None:
        """Raises `StoreUnavailableError` after `close`."""
        if self._closed:
            raise StoreUnavailableError("the store is closed")

    def close(self) -> None:
        """Closes it for ever."""
        self._closed = True
