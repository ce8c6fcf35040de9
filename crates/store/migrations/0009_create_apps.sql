CREATE TABLE IF NOT EXISTS apps (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    name TEXT NOT NULL,
    desired TEXT NOT NULL,
    status TEXT NOT NULL,
    messages TEXT NOT NULL,
    version BIGINT NOT NULL,
    delete_when_empty BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    started_at BIGINT,
    succeeded_at BIGINT,
    paused_at BIGINT,
    resumed_at BIGINT,
    terminated_at BIGINT
);
