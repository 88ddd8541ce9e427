"""The table of limits (G7): queues, sizes and counts that a peer can drive on a stream, or in a chat.

Those of connections and unary calls stand with their options (`edge/server.py`, `edge/interceptors.py`), those of links between
nodes with theirs (`relay/`).
"""

from dataclasses import dataclass

from chatgrpc.v1 import session_pb2


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may be done."""

    burst: int
    """So many times at once."""
    interval_ms: int
    """And once more whenever so much time has passed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one deployment. What passes one gets the typed error at its line, or what stands there instead."""

    batch_bytes_max: int = 1024 * 1024
    """Size of a message on the stream; passing it: DISCONNECT_CODE_MALFORMED, or gRPC's own RESOURCE_EXHAUSTED."""
    gathered_bytes_max: int = 64 * 1024
    """Frames gathered into one message to a device; a frame that is larger goes alone. A message arrives as a whole or not at
    all; at 2 KB/s this one still arrives before the device counts as a slow reader."""
    frames_per_batch_max: int = 512
    """Frames in a batch; DISCONNECT_CODE_MALFORMED."""
    requests_in_flight_max: int = 256
    """Unanswered requests of a session; ERROR_CODE_TOO_MANY_IN_FLIGHT."""
    sends_in_flight_bytes_max: int = 2 * 1024 * 1024
    """Contents of its unanswered sends, which are kept until the owner has answered; ERROR_CODE_TOO_MANY_IN_FLIGHT."""
    sends_in_order_max: int = 1_024
    """Sends of a session that have no outcome yet, or failed and are to come again; DISCONNECT_CODE_OVERLOADED."""
    history_requests_in_flight_max: int = 4
    """Unanswered FetchHistory of a session, since each answer may be a page; ERROR_CODE_TOO_MANY_IN_FLIGHT."""
    refreshes_in_flight_max: int = 1
    """Unanswered RefreshToken of a session, since each costs the check of a signature; ERROR_CODE_TOO_MANY_IN_FLIGHT."""
    text_bytes_max: int = 65_536
    """A text or ciphertext; ERROR_CODE_TOO_LARGE."""
    content_bytes_max: int = 96 * 1024
    """Content of an event with all its fields, also those that this version does not know; ERROR_CODE_TOO_LARGE."""
    unknown_bytes_max: int = 4 * 1024
    """Of a content those fields that this version does not know; ERROR_CODE_TOO_LARGE."""
    reaction_bytes_max: int = 64
    """A reaction's emoji; ERROR_CODE_TOO_LARGE."""
    scheme_bytes_max: int = 64
    """Name of an encryption scheme; ERROR_CODE_TOO_LARGE."""
    forward_count_max: int = 1_000
    """How often a message was forwarded; ERROR_CODE_INVALID_ARGUMENT."""
    mute_ms_max: int = 10 * 366 * 24 * 60 * 60 * 1000
    """How far ahead a member may be muted; ERROR_CODE_INVALID_ARGUMENT."""
    hide_seqs_max: int = 100
    """Messages hidden by one event; ERROR_CODE_TOO_LARGE."""
    unacknowledged_events_max: int = 1_000
    """Events pushed to a device beyond what it acknowledged; past it the log is read later (G5)."""
    unacknowledged_bytes_max: int = 1024 * 1024
    """The same in bytes."""
    control_frames_max: int = 2_048
    """Receipts, typing and presence waiting for a device that does not read; more are dropped. Receipts come with its next
    Hello, presence when it watches again."""
    heartbeat_heads_max: int = 64
    """Chats named in a heartbeat; the others are named once the device has caught up with some of these."""
    backlog_bytes_max: int = 256 * 1024
    """Bytes waiting to be sent on a stream; past it the stream is not read until they are gone."""
    history_page_default: int = 20
    history_page_max: int = 100
    """Events in a page; more is cut to it."""
    chats_page_default: int = 50
    chats_page_max: int = 100
    """Chats in a page; more is cut to it."""
    page_bytes_max: int = 512 * 1024
    """A page, of events or of chats, ends early past this size."""
    group_members_max: int = 256
    """Members of a group; ERROR_CODE_LIMIT_EXCEEDED."""
    memberships_per_chat_max: int = 100
    """How often a user may come into the same group; ERROR_CODE_LIMIT_EXCEEDED."""
    join_requests_max: int = 256
    """Users waiting to be let into a group; ERROR_CODE_LIMIT_EXCEEDED."""
    small_group_members_max: int = 32
    """Up to here a group pushes receipts per user, and presence (M12)."""
    chats_per_user_max: int = 2_000
    """Groups that a user may make or join beyond all that others could put them into (`groups_by_others_max`,
    `groups_by_contacts_max`), so that nobody takes that away; ERROR_CODE_LIMIT_EXCEEDED. Direct chats do not count: they are
    how anybody is reached."""
    groups_by_others_max: int = 5_000
    """Groups of a user whom others do not add to more; ERROR_CODE_LIMIT_EXCEEDED."""
    groups_by_contacts_max: int = 2_000
    """Groups beyond these to which those may add a user whose direct chat with them the user has opened;
    ERROR_CODE_LIMIT_EXCEEDED."""
    positions_max: int = 10_000
    """Chats of which a Hello is heard, those named first: more than a user may have groups. Others begin where the device
    acknowledged."""
    additions_rate: Rate = Rate(1_000, 10_000)
    """How often a user may draw others into groups, each one counted; ERROR_CODE_RATE_LIMITED."""
    groups_rate: Rate = Rate(100, 60_000)
    """How often a user may make a group; ERROR_CODE_RATE_LIMITED."""
    joins_rate: Rate = Rate(100, 60_000)
    """How often a user may come in by a link, or ask to; ERROR_CODE_RATE_LIMITED."""
    direct_chats_rate: Rate = Rate(200, 30_000)
    """How often a user may send somebody a first message; ERROR_CODE_RATE_LIMITED."""
    bots: frozenset[str] = frozenset()
    """Users who may do all of this more often, as an operator says."""
    bots_factor: int = 100
    """How many times more often."""
    unknown_revocations_rate: Rate = Rate(20, 600_000)
    """How often a user may revoke ids that no device has and that are not revoked, with tokens that name the same device, or
    none; ERROR_CODE_RATE_LIMITED."""
    nodes_listed_max: int = 1_000
    """Nodes told by NodeService.ListNodes; of more, as many at random."""
    devices_per_user_max: int = 10
    """Devices of a user; DISCONNECT_CODE_TOO_MANY_DEVICES."""
    watched_chats_max: int = 20
    """Chats whose presence a session watches; more are cut."""
    title_chars_max: int = 100
    """A group's title; ERROR_CODE_TOO_LARGE."""
    picture_url_bytes_max: int = 2_048
    """ERROR_CODE_TOO_LARGE."""
    display_name_chars_max: int = 100
    """ERROR_CODE_TOO_LARGE."""
    about_chars_max: int = 500
    """ERROR_CODE_TOO_LARGE."""
    device_name_bytes_max: int = 64
    """Cut in Hello; ERROR_CODE_TOO_LARGE in DeviceService."""
    edit_window_ms: int = 15 * 60 * 1000
    """How long after sending a message may be edited; ERROR_CODE_WINDOW_PASSED."""
    delete_window_ms: int = 60 * 60 * 60 * 1000
    """How long after sending a message may be deleted by its sender; ERROR_CODE_WINDOW_PASSED."""
    dedupe_span_max: int = 4_096
    """Events of the log looked through for a duplicate; ERROR_CODE_SEEN_SEQ_TOO_OLD."""
    recent_events_per_chat: int = 128
    """Events of an active chat whose meta the owner keeps in memory, so that most checks read nothing."""
    chats_active_max: int = 100_000
    """Chats that a node keeps loaded, of all that it orders; the longest idle ones are dropped."""
    chats_active_bytes_max: int = 256 * 1024 * 1024
    """About the bytes that these take."""
    heads_remembered_max: int = 200_000
    """Chats that a node has dropped and of which it remembers where they end, so that a question reads nothing."""
    appends_in_flight_per_chat_max: int = 256
    """Rows of one chat on their way to the cluster's store at once; what is more waits its turn."""
    group_entries_max: int = 1_024
    """Events committed together; what is more waits for the next group."""
    writes_waiting_per_chat_max: int = 4_096
    """Writes of one chat waiting for its owner or for their commit; ERROR_CODE_UNAVAILABLE with a delay."""
    writes_waiting_bytes_per_chat_max: int = 8 * 1024 * 1024
    """The same in bytes: contents that wait, and events that are not committed yet."""
    writes_waiting_bytes_max: int = 128 * 1024 * 1024
    """The same of all chats that a node orders."""
    writes_waiting_bytes_per_user_max: int = 32 * 1024 * 1024
    """Of these those of one sender, so that nobody takes up the room of all."""
    questions_waiting_per_chat_max: int = 1_024
    """Questions that wait for a chat's owner to be ready, one of each kind from each node or user; more are passed over, and
    asked again."""
    marks_in_memory_max: int = 200_000
    """Receipts kept in memory; the longest unchanged are dropped once they are stored."""
    last_seen_max: int = 200_000
    """Users whose last disconnection is remembered."""
    typing_interval_ms: int = 1_000
    """Typing frames of one session in one chat closer than this are dropped."""

    def frame(self) -> session_pb2.Limits:
        """The part that clients must know."""
        return session_pb2.Limits(
            batch_bytes_max=self.batch_bytes_max,
            frames_per_batch_max=self.frames_per_batch_max,
            requests_in_flight_max=self.requests_in_flight_max,
            sends_in_flight_bytes_max=self.sends_in_flight_bytes_max,
            text_bytes_max=self.text_bytes_max,
            unacknowledged_events_max=self.unacknowledged_events_max,
            unacknowledged_bytes_max=self.unacknowledged_bytes_max,
            history_page_max=self.history_page_max,
            group_members_max=self.group_members_max,
            chats_per_user_max=self.chats_per_user_max,
            devices_per_user_max=self.devices_per_user_max,
            watched_chats_max=self.watched_chats_max,
            edit_window_ms=self.edit_window_ms,
            delete_window_ms=self.delete_window_ms,
        )
