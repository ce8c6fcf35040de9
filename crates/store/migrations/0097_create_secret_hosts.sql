CREATE TABLE IF NOT EXISTS secret_hosts (
    secret_id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    hosts TEXT NOT NULL
);
