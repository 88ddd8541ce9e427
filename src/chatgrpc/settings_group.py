"""What all settings share: how a group of them is declared, and how a node says that it cannot start."""

from pydantic import BaseModel, ConfigDict


class StartError(Exception):
    """The node cannot start, and the person who starts it can do something about it. The message says what."""


class SettingsGroup(BaseModel):
    """Settings that belong together; immutable, and none that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
