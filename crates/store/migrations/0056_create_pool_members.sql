CREATE TABLE IF NOT EXISTS pool_members (
    service_id TEXT NOT NULL PRIMARY KEY REFERENCES services (id),
    pool_id TEXT NOT NULL REFERENCES service_pools (id),
    generation BIGINT NOT NULL,
    retired BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
