CREATE TABLE IF NOT EXISTS activities (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    verb TEXT NOT NULL,
    object TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
