CREATE TABLE chats (
    number  INTEGER PRIMARY KEY,
    chat_id TEXT NOT NULL UNIQUE,
    chat    BLOB NOT NULL DEFAULT x''   -- chatgrpc.v1.Chat after the last event that changed it
) STRICT;

-- The history. The key is one integer, chat number and seq, so that a chat's events lie together in the order of a page, a
-- row carries no repeated chat id, and an event of up to 4 kB lies in its leaf: a key of (chat_id, seq) WITHOUT ROWID moves
-- all beyond 1 kB to pages of its own, which made the file twice as large; a table by time of arrival with an index writes
-- faster where many chats are busy at once, and reads a page of 20 from 20 places.
CREATE TABLE log (
    key        INTEGER PRIMARY KEY,     -- chats.number << 32 | seq
    epoch      INTEGER NOT NULL,
    event      BLOB NOT NULL,           -- chatgrpc.v1.ChatEvent
    amends_key INTEGER                  -- key of the message whose content this event's content replaces
) STRICT;

CREATE INDEX log_by_amended ON log (amends_key) WHERE amends_key IS NOT NULL;

CREATE TABLE members (
    user_id    TEXT NOT NULL,
    chat_id    TEXT NOT NULL,
    joined_seq INTEGER NOT NULL,
    left_seq   INTEGER NOT NULL,        -- 0 = is a member
    PRIMARY KEY (user_id, chat_id, joined_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE receipts (
    chat_id       TEXT NOT NULL,
    user_id       TEXT NOT NULL,
    delivered_seq INTEGER NOT NULL,
    read_seq      INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    PRIMARY KEY (chat_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE cursors (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    chat_id   TEXT NOT NULL,
    acked_seq INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, chat_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE profiles (
    user_id      TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    about        TEXT NOT NULL,
    picture_url  TEXT NOT NULL
) STRICT;

CREATE TABLE devices (
    user_id         TEXT NOT NULL,
    device_id       TEXT NOT NULL,
    name            TEXT NOT NULL,
    created_at_ms   INTEGER NOT NULL,
    connected_at_ms INTEGER NOT NULL,
    revoked         INTEGER NOT NULL,   -- 1 = for ever
    PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE epochs (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    epoch INTEGER NOT NULL
) STRICT;
