"""What all settings share: how a group of them is declared."""

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Settings that belong together; immutable, and none that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
