"""The chat in a terminal. Apart from `screen`, since prompt_toolkit takes a third of a second to load."""

import sys
from collections.abc import AsyncIterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from .screen import Source

REFRESH_S = 0.5
DIM, RESET = "\x1b[2m", "\x1b[0m"
STYLE = Style.from_dict(
    {"bottom-toolbar": "noreverse", "read": "#34b7f1 bold", "delivered": "bold", "good": "#25d366", "bad": "#ff5f5f bold"}
)


class TerminalScreen:
    """A prompt at the bottom with a toolbar below it; everything else scrolls above."""

    shows_toolbar = True

    def __init__(self, commands: Sequence[str]) -> None:
        self._session: PromptSession[str] = PromptSession(
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            erase_when_done=True,
            refresh_interval=REFRESH_S,
            style=STYLE,
        )

    def show(self, text: str, *, dim: bool = False) -> None:
        """See `Screen`."""
        sys.stdout.write(f"{DIM}{text}{RESET}\n" if dim else f"{text}\n")

    def changed(self) -> None:
        """See `Screen`."""
        self._session.app.invalidate()

    async def lines(self, source: Source) -> AsyncIterator[str]:
        """See `Screen`."""

        def typed(buffer: Buffer) -> None:
            if buffer.text and not buffer.text.startswith("/"):
                source.typing()

        def toolbar() -> StyleAndTextTuples:
            return list(source.toolbar())

        self._session.default_buffer.on_text_insert += typed
        with patch_stdout(raw=True):
            while True:
                try:
                    line = await self._session.prompt_async(source.prompt, bottom_toolbar=toolbar)
                except (EOFError, KeyboardInterrupt):
                    return
                yield line
