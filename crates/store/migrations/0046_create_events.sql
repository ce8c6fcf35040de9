CREATE TABLE IF NOT EXISTS events (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    object_kind TEXT NOT NULL,
    object_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    metadata TEXT NOT NULL,
    occurred_at BIGINT NOT NULL
);
