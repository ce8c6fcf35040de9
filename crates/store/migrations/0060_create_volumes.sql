CREATE TABLE IF NOT EXISTS volumes (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    project_id TEXT REFERENCES projects (id),
    name TEXT NOT NULL,
    region TEXT NOT NULL,
    max_size BIGINT NOT NULL,
    made_size BIGINT NOT NULL,
    used_bytes BIGINT NOT NULL,
    read_only BIGINT NOT NULL,
    snapshot_id TEXT,
    service_id TEXT,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
