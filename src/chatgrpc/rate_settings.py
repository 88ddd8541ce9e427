"""Settings of the rates: how often users may reach out, and who may do it more often."""

from pydantic import Field, field_validator

from chatgrpc.core.ids import is_user_id
from chatgrpc.settings_group import SettingsGroup


class RateSettings(SettingsGroup):
    """How often a user may do what reaches others unasked: so many times at once, and once more in each interval."""

    additions_burst: int = Field(default=1_000, ge=1, le=1_000_000, description="People drawn into groups at once.")
    additions_interval_s: float = Field(default=10.0, ge=0.001, description="One more may be drawn into a group this often.")
    groups_burst: int = Field(default=100, ge=1, le=1_000_000, description="Groups made at once.")
    groups_interval_s: float = Field(default=60.0, ge=0.001, description="One more group may be made this often.")
    joins_burst: int = Field(default=100, ge=1, le=1_000_000, description="Groups entered by a link, or asked to, at once.")
    joins_interval_s: float = Field(default=60.0, ge=0.001, description="One more group may be entered by a link this often.")
    first_messages_burst: int = Field(default=200, ge=1, le=1_000_000, description="Direct chats begun at once.")
    first_messages_interval_s: float = Field(
        default=30.0, ge=0.001, description="One more direct chat may be begun this often."
    )
    bots: str = Field(default="", description="Users who may do it more often, such as those of a service: user id,….")
    bots_factor: int = Field(default=100, ge=1, le=10_000, description="How many times more often these may do it.")

    @field_validator("bots")
    @classmethod
    def _are_user_ids(cls, value: str) -> str:
        for user_id in _parts(value):
            if not is_user_id(user_id):
                raise ValueError("must be user ids, separated by commas")
        return value

    @property
    def bot_user_ids(self) -> frozenset[str]:
        """The users of `bots`."""
        return frozenset(_parts(self.bots))


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]
