-- Devices that give way to others where a user has as many as allowed.
ALTER TABLE devices ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0;
