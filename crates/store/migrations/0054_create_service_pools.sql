CREATE TABLE IF NOT EXISTS service_pools (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    name TEXT NOT NULL,
    size BIGINT NOT NULL,
    definition TEXT NOT NULL,
    desired TEXT NOT NULL,
    messages TEXT NOT NULL,
    generation BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
