-- A revocation makes tokens void that name no device and were issued before it.
CREATE TABLE token_bounds (
    user_id       TEXT PRIMARY KEY,
    not_before_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Of a user's revoked devices only those are kept that were revoked last.
ALTER TABLE devices ADD COLUMN revoked_at_ms INTEGER NOT NULL DEFAULT 0;
