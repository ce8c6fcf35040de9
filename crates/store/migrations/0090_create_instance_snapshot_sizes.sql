CREATE TABLE IF NOT EXISTS instance_snapshot_sizes (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    bytes BIGINT NOT NULL
);
