"""The chat in a terminal. Apart from `screen`, since prompt_toolkit takes a third of a second to load."""

import sys
from collections.abc import AsyncIterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from .rendering import safe_lines
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
            key_bindings=self._keys(),
        )

    def _keys(self) -> KeyBindings:
        """Ctrl-C takes back what is typed, and leaves only when there is nothing: a habit must not cost the chat."""
        keys = KeyBindings()

        @keys.add("c-c")
        def _(press: KeyPressEvent) -> None:
            if not press.current_buffer.text:
                press.app.exit(exception=KeyboardInterrupt())
                return
            press.current_buffer.document = Document()
            self.show("       Ctrl-C again or Ctrl-D leaves", dim=True)

        @keys.add("c-z")
        def _(press: KeyPressEvent) -> None:
            press.app.suspend_to_background()

        return keys

    def show(self, text: str, *, dim: bool = False) -> None:
        """See `Screen`."""
        text = safe_lines(text, "")
        sys.stdout.write(f"{DIM}{text}{RESET}\n" if dim else f"{text}\n")

    def changed(self) -> None:
        """See `Screen`."""
        self._session.app.invalidate()

    async def lines(self, source: Source) -> AsyncIterator[str]:
        """See `Screen`."""

        def typed(buffer: Buffer) -> None:
            if buffer.text and not buffer.text.startswith("/"):
                source.typing()

        def changed(buffer: Buffer) -> None:
            if not buffer.text:
                source.typing_stopped()

        def toolbar() -> StyleAndTextTuples:
            return [(style, safe_lines(text, "")) for style, text in source.toolbar()]

        self._session.default_buffer.on_text_insert += typed
        self._session.default_buffer.on_text_changed += changed
        with patch_stdout(raw=True):
            while True:
                try:
                    line = await self._session.prompt_async(source.prompt, bottom_toolbar=toolbar)
                except (EOFError, KeyboardInterrupt):
                    return
                yield line
