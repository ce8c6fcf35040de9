CREATE TABLE IF NOT EXISTS proxy_ports (
    public_port BIGINT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    service_id TEXT NOT NULL REFERENCES services (id),
    port BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
