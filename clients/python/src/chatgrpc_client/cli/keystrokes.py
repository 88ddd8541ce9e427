"""When keystrokes are told to the others as typing. No I/O; times are seconds of one monotonic clock."""

REPEATED_EVERY_S = 3.0
APART_S = 1.05
"""The server drops what comes within a second of the one before."""
_NEVER_S = float("-inf")


class Keystrokes:
    """What was told of the line that is being typed."""

    def __init__(self) -> None:
        self._told_s = _NEVER_S
        self._due_s = _NEVER_S
        self._shown = False

    def typed(self, now_s: float) -> bool:
        """A key was pressed; returns whether to tell that someone is typing."""
        if now_s < self._due_s:
            return False
        self._told_s, self._due_s, self._shown = now_s, now_s + REPEATED_EVERY_S, True
        return True

    def sent(self) -> None:
        """The line became a message, which ends the typing for who reads it: the next keystroke begins it anew."""
        self._due_s, self._shown = self._told_s + APART_S, False

    def cleared(self) -> bool:
        """The line is empty again; returns whether to tell that the typing stopped."""
        shown = self._shown
        self.sent()
        return shown
