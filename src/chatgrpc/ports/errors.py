"""What a store may answer besides a result. Each adapter maps its engine's errors to these at its border."""


class StoreError(Exception):
    """The store did not do what it was asked. The message names the engine's error; it holds no message content."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or is full; for a write: nothing of it was stored."""


class OutcomeUnknownError(StoreError):
    """A write was sent and nobody knows whether it was stored. Reading tells, later."""


class CannotBeStoredError(StoreError):
    """A write says what can never be stored, so trying it again is in vain."""


class ChatDamagedError(StoreError):
    """What is stored of a chat cannot be right, so it cannot be read until that is mended; other chats can."""

    def __init__(self, chat_id: str, why: str) -> None:
        """`why` quotes nothing of what is stored."""
        super().__init__(f"chat {chat_id} is damaged: {why}")
        self.chat_id = chat_id
        self.why = why


class StaleOwnerError(StoreError):
    """An entry at this seq exists already: another owner wrote it, or this one forgot that it did. Nothing of the write was
    stored; whoever asked for it must read the chat again before going on."""
