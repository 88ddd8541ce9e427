"""Where a chat is shown and lines are typed; here for pipes and scripts, in `terminal` for people."""

import sys
from collections.abc import AsyncIterator
from typing import Protocol

from .lines import stdin_lines
from .rendering import safe_lines

StyledText = list[tuple[str, str]]
"""Pairs of a style of `terminal.STYLE` and a text."""


class Source(Protocol):
    """What a screen shows beside the lines."""

    def prompt(self) -> str:
        """What stands before the typed line."""
        ...

    def toolbar(self) -> StyledText:
        """What stands below it, as it is now."""
        ...

    def typing(self) -> None:
        """Something was typed that may become a message."""
        ...

    def typing_stopped(self) -> None:
        """What was typed is gone again."""
        ...


class Screen(Protocol):
    """Shows lines and yields typed ones."""

    shows_toolbar: bool
    """Whether `Source.toolbar` is on the screen, so that changes need no line of their own."""

    def show(self, text: str, *, dim: bool = False) -> None:
        """Prints a line, or several; what would steer a terminal is shown as an escape, whoever said it."""
        ...

    def changed(self) -> None:
        """The toolbar has news."""
        ...

    def lines(self, source: Source) -> AsyncIterator[str]:
        """The typed lines, until the end of the input or an interrupt."""
        ...


class PlainScreen:
    """Lines in, lines out."""

    shows_toolbar = False

    def show(self, text: str, *, dim: bool = False) -> None:
        """See `Screen`."""
        sys.stdout.write(f"{safe_lines(text, '')}\n")
        sys.stdout.flush()

    def changed(self) -> None:
        """See `Screen`."""

    async def lines(self, source: Source) -> AsyncIterator[str]:
        """See `Screen`."""
        async for line in stdin_lines():
            yield line
