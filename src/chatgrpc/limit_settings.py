"""Settings of the group `limits`: what one caller may take of a node's connections and calls, and what all may."""

from pydantic import Field

from chatgrpc.settings_group import SettingsGroup


class LimitSettings(SettingsGroup):
    """What one user, or one address, may use of a node. All callers behind a NAT or a load balancer have one address."""

    streams_max: int = Field(
        default=100_000, ge=1, description="Streams of all devices of a node; those beyond it are sent to another node."
    )
    calls_per_user: int = Field(default=100, ge=1, le=1_000, description="Unary calls of one user at the same time.")
    unchecked_calls_per_address: int = Field(
        default=1_000, ge=1, description="Unary calls of one address that need no token, or whose token is being checked."
    )
    health_calls_per_address: int = Field(
        default=100, ge=1, le=1_000, description="Calls of Health.Watch and reflection of one address at the same time."
    )
    silent_streams_per_address: int = Field(
        default=2_000, ge=1, description="Streams of one address whose devices are not let in yet."
    )
    idle_connections_per_address: int = Field(
        default=1_000, ge=1, description="Connections of one address without a call; those idle the longest are cut."
    )
    connection_idle_s: float = Field(
        default=120.0, ge=0.1, le=86_400, description="A connection without a call or a stream is closed after as long."
    )
